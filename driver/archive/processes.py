"""Work shared out over processes that leave Ctrl-C to the one that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import resource_tracker
from typing import Any, TypeVar

_T = TypeVar("_T")


def in_processes(function: Callable[..., _T], calls: Sequence[tuple[Any, ...]], number: int) -> Iterator[_T]:
    """Call a function with each of several sets of arguments, in new processes; yield the results in that order.

    Parameters
    ----------
    function : callable
        Of a module's top level; it only reads, for it may be ended at any time.
    calls : sequence of tuple
        Its arguments.
    number : int
        Processes to start, at most.

    Raises
    ------
    Exception
        What the function raises. Then, or when interrupted, the processes are ended at once.
    """
    others = set(multiprocessing.active_children())
    # Spawned, not forked: neither an open archive nor a library's threads survive a fork.
    pool = ProcessPoolExecutor(min(number, len(calls)), multiprocessing.get_context("spawn"))
    try:
        with _interrupts_waiting():
            futures = [pool.submit(function, *call) for call in calls]
        for future in futures:
            yield future.result()
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_waiting() -> Iterator[None]:
    """Let SIGINT wait; processes that start meanwhile never see one, so that Ctrl-C is answered once."""
    resource_tracker.ensure_running()  # it unblocks signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
