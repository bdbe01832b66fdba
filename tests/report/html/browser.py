"""A real Chromium that reads report.html and tells what it saw."""

from __future__ import annotations

import json
import shutil
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

MISSING = next(
    (
        f"{each} is not installed: apt-get install {package}"
        for each, package in (("chromium", "chromium"), ("chromedriver", "chromium-driver"))
        if not shutil.which(each)
    ),
    None,
)
"""Why there is no browser here; None where there is one."""

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@dataclass(slots=True)
class Browser:
    """One window.

    Attributes:
        driver: Selenium's.
        folder: where pages and downloads go.
    """

    driver: Chrome
    folder: Path

    def show(
        self, page: str, *, width: int = 1280, dark: bool = False, scripts: bool = True
    ) -> None:
        """Load a page in a window of so many pixels and wait until its charts are drawn."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.media("screen", dark=dark)
        self.command("Emulation.setScriptExecutionDisabled", value=not scripts)
        path = self.folder / "report.html"
        path.write_text(page, encoding="utf-8")
        self.console()
        self.requests()
        self.driver.get(path.as_uri())
        if scripts:
            self.until(
                lambda: self.run("return document.documentElement.dataset.drawn !== undefined")
            )

    def media(self, kind: str, *, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", media=kind, features=[scheme])

    def command(self, name: str, **arguments: Any) -> dict[str, Any]:
        """A command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def run(self, code: str, *arguments: Any) -> Any:
        """Run JavaScript in the page; the driver may do so whatever the page's policy is."""
        return self.driver.execute_script(code, *arguments)

    def every(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """The text of every such element, whether it can be seen or not."""
        code = "return [...document.querySelectorAll(arguments[0])].map(each => each.textContent)"
        return list(self.run(code, selector))

    def style(self, selector: str, name: str) -> str:
        code = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        return str(self.run(code, selector, name))

    def click(self, selector: str) -> None:
        element = self.one(selector)
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def point_at(self, element: WebElement) -> None:
        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        ActionChains(self.driver).move_to_element(element).perform()

    def until(self, condition: Callable[[], object], seconds: float = 60) -> Any:
        """Wait for something true; fail if it does not come."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, self.console()
            time.sleep(0.05)
        return found

    def console(self) -> list[str]:
        """What the page has complained of since the last look."""
        return [f"{each['level']}: {each['message']}" for each in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that have been asked for since the last look."""
        events = (
            json.loads(each["message"])["message"] for each in self.driver.get_log("performance")
        )
        return [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def downloaded(self, name: str) -> bytes:
        """A file that the page has been told to save."""
        path = self.folder / name
        self.until(path.is_file)
        return path.read_bytes()

    def pdf(self) -> bytes:
        return b64decode(self.command("Page.printToPDF", preferCSSPageSize=True)["data"])


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a Chromium of its own, and end it."""
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*_FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        opened = Browser(driver, folder)
        opened.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        yield opened
    finally:
        driver.quit()
