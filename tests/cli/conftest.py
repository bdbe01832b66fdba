"""Fixtures of the command line's tests."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import Desk, Said
from tiny_models import TinyPair, tiny_pair

from kldcloud.cli.main import main


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """A base and a candidate for it."""
    return tiny_pair(tmp_path_factory.mktemp("models"), vocabulary=320, bos=True)


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    """Models with one vocabulary entry more."""
    return tiny_pair(tmp_path_factory.mktemp("strangers"), vocabulary=321, bos=True)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder of the module's own, empty at first."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLDCLOUD_CACHE", str(folder))
        yield folder


@pytest.fixture
def desk(tmp_path: Path, pair: TinyPair) -> Desk:
    """A job that would run."""
    fresh = Desk(tmp_path, pair)
    fresh.write_job()
    return fresh


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Said]:
    """The command in this process, for what another process would add nothing to."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["kldcloud", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return Said(int(end.value.code or 0), out, err)

    return run
