"""One rank killed or stopped in each phase: the run ends in time, with everything that was committed.

The cases that cover most; all of them, under srun too: `python -m benchmarks.faults --matrix` (docs/faults.md).
"""

from __future__ import annotations

import signal

import pytest
from fault_matrix import PLAIN, ULFM, Case, Launcher, try_case

pytestmark = pytest.mark.mpi

KILL, STOP = signal.SIGKILL, signal.SIGSTOP


@pytest.mark.parametrize(
    ("launcher", "case"),
    [
        pytest.param(launcher, case, id=f"{launcher.name}: {case}")
        for launcher, case in (
            (ULFM, Case(STOP, 1, "loading")),
            (ULFM, Case(STOP, 1, "before Hello")),
            (ULFM, Case(STOP, 1, "idle")),
            (ULFM, Case(STOP, 1, "after the last result")),
            (ULFM, Case(STOP, 1, "draining")),
            (ULFM, Case(STOP, 0, "running")),
            (ULFM, Case(KILL, 0, "draining")),
            (PLAIN, Case(STOP, 0, "loading")),
            (PLAIN, Case(STOP, 1, "before Hello")),
            (PLAIN, Case(STOP, 0, "running")),
            (PLAIN, Case(KILL, 1, "after the last result")),
            (PLAIN, Case(STOP, 1, "draining")),
        )
    ],
)
def test_the_run_ends_and_nothing_is_lost(tmp_path, launcher: Launcher, case: Case):
    ending = try_case(case, launcher, tmp_path)
    assert not ending.hung, ending.output
    assert ending.good, f"{ending}"
