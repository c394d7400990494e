"""Work in a child process: it can be left at once, ends with its parent, and does not hold the parent's interpreter.

The child is another Python with the parent's search path. Argument and result are what JSON can hold. Importable
without torch, so that a process that has no need of it can have a child load it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from driver.errors import InterruptedRunError, LatdynError, UsageError

POLL_S = 0.2
"""Between two questions whether to stop."""

_PR_SET_PDEATHSIG = 1
_IGNORED = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
"""Launchers send these to all processes of a job; the parent decides what becomes of the child."""


class ChildError(LatdynError):
    """What a child process failed with, other than a `UsageError`."""


def call(
    function: str,
    argument: Any,
    *,
    stop: Callable[[], bool] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Call a function in a child process and return its result.

    Parameters
    ----------
    function : str
        `module:name`, of one argument.
    argument : JSON value
    stop : callable, optional
        Asked several times a second; once it is true, the child and its own children are killed.
    environment : mapping, optional
        Variables to set for the child.

    Raises
    ------
    UsageError
        As the function raised it.
    ChildError
        For any other exception, or if the child died.
    InterruptedRunError
        `stop` has become true.
    """
    paths = [path or str(Path.cwd()) for path in sys.path]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "driver.engine.child", function, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
        text=True,
    )
    try:
        out, err = _outputs(process, json.dumps(argument), stop)
    finally:
        _kill(process)
    return _result(out, err, process.returncode)


def _outputs(process: subprocess.Popen[str], argument: str, stop: Callable[[], bool] | None) -> tuple[str, str]:
    """Wait for what a child writes."""
    given: str | None = argument  # handed over at once; only the waiting is repeated
    while True:
        if stop is not None and stop():
            raise InterruptedRunError("stopped on request; run the same command again")
        try:
            return process.communicate(given, timeout=POLL_S)
        except subprocess.TimeoutExpired:
            given = None


def _kill(process: subprocess.Popen[str]) -> None:
    """End a child that still runs, with the compilers that it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _result(out: str, err: str, code: int) -> Any:
    try:
        answer = json.loads(out)
    except ValueError:
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        last = [line for line in err.splitlines() if line.strip()][-1:]
        raise ChildError(": ".join([f"the process {how}", *last])) from None
    if answer["failure"] is None:
        return answer["result"]
    error = (UsageError if answer["usage"] else ChildError)(answer["failure"])
    error.add_note(answer["trace"])  # for --debug
    raise error


def main() -> None:
    """Be the child: read the argument from stdin, write the result to stdout."""
    function, parent = sys.argv[1:]
    _end_with(int(parent))
    for name in _IGNORED:
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no result
    answer: dict[str, Any] = {"result": None, "failure": None, "usage": False}
    try:
        module, _, name = function.partition(":")
        answer["result"] = getattr(importlib.import_module(module), name)(json.load(sys.stdin))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        answer |= {"failure": reason, "usage": isinstance(error, UsageError), "trace": traceback.format_exc()}
    with results:
        json.dump(answer, results)


def _end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


if __name__ == "__main__":
    main()
