"""What scipy, ASE and phonopy warn of concerns those who program with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

RELAXATION = """
import numpy, scipy.linalg, sys
from driver.library_warnings import silence_library_warnings
if sys.argv[1] == "silent":
    silence_library_warnings()
scipy.linalg.logm(numpy.diag([1.0, 1e-300, 1.0]) + 1e-14)  # as a cell filter does at each step
scipy.linalg.logm(numpy.zeros((3, 3)))
"""


@pytest.mark.parametrize(
    ("options", "mode", "shown"), [((), "loud", True), ((), "silent", False), (("-W", "default"), "silent", True)]
)
def test_warnings_of_scipy(options: tuple[str, ...], mode: str, shown: bool) -> None:
    command = [sys.executable, *options, "-c", RELAXATION, mode]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert bool(result.stderr) is shown, result.stderr
