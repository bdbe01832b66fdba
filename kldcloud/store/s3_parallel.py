"""A few requests at a time, all stopped when one fails or Ctrl-C comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_in_flight(
    work: Callable[[Item, threading.Event], Result], items: Iterable[Item], *, width: int
) -> list[Result]:
    """Run `work` on every item, `width` at a time; return the results in the items' order.

    `work` gets an event that is set once the others should not be tried again. No thread is
    left running when this returns or raises.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(width, thread_name_prefix="s3") as pool:
        futures = [pool.submit(work, item, stop) for item in items]
        try:
            finished, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in finished:
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
