"""Runs the driver and the analysis as a user does: as commands, alone or under mpirun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SHORT = (
    "campaign=smoke",
    "execution.device=cpu",
    "execution.threads=1",
    "relax.fmax_eV_A=5e-3",
    "dynamics.equilibration_ps=0.02",
    "dynamics.production_ps=0.04",
    "dynamics.segment_ps=0.02",
)
"""Two compounds, three short segments: seconds of computing."""


def command(arguments: list[str], ranks: int = 0) -> list[str]:
    """Command line of `python -m ...`, under mpirun if there are ranks."""
    python = [sys.executable, "-m", *arguments]
    return [*mpirun(ranks), *python] if ranks else python


def mpirun(ranks: int, *options: str) -> list[str]:
    """The real mpirun, that of the environment first."""
    beside = Path(sys.executable).parent / "mpirun"
    program = str(beside) if beside.exists() else shutil.which("mpirun") or "mpirun"
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    return [program, "--oversubscribe", "--bind-to", "none", *root, *options, "-n", str(ranks)]


def environment() -> dict[str, str]:
    """Of a user's shell, with one thread per rank."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": path}


def call(arguments: list[str], ranks: int = 0, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(arguments, ranks), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout_s
    )


def start(arguments: list[str], ranks: int = 0) -> subprocess.Popen[str]:
    """Begin a command."""
    return subprocess.Popen(
        command(arguments, ranks),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_campaign(folder: Path, *overrides: str, ranks: int = 0) -> subprocess.CompletedProcess[str]:
    """`python -m driver run` of a short campaign in a folder."""
    return call(["driver", "run", f"runs={folder}", *overrides], ranks)
