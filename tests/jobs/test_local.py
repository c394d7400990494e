"""The quick start's script: what it starts, with stand-ins for Python and mpirun that note how they were called."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from campaigns import ROOT

PYTHON = """#!/bin/sh
echo "python $*" >>"$CALLS"
case "$*" in *refused*) echo "latdyn: refused, with the remedy" >&2; exit 2 ;; esac
case "$*" in *--archive*) echo runs/mine/archive.h5 ;; *"driver plan"*) echo "a long table" ;; esac
"""

MPIRUN = """#!/bin/sh
echo "mpirun $*" >>"$CALLS"
[ -z "$LASTS" ] && exit 0
trap 'exit 75' USR1
echo started
for second in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 1; done
"""


@pytest.fixture
def project(tmp_path) -> Path:
    """A project that is set up, as far as the script looks."""
    root = tmp_path / "my project"
    (root / ".venv" / "bin").mkdir(parents=True)
    shutil.copytree(ROOT / "jobs", root / "jobs")
    for name in ("setup.cfg", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    stamp = subprocess.run(
        "cat setup.cfg constraints.txt | cksum", shell=True, cwd=root, capture_output=True, text=True
    )
    (root / ".venv" / ".latdyn").write_text(f"{stamp.stdout.strip()} run,mpi,test,fast\n")
    for name, script in (("python", PYTHON), ("mpirun", MPIRUN)):
        (root / ".venv" / "bin" / name).write_text(script)
        (root / ".venv" / "bin" / name).chmod(0o755)
    return root


def environment(project: Path, **variables: str) -> dict[str, str]:
    return {**os.environ, "CALLS": str(project / "calls"), "LASTS": "", "WORKERS": "3", **variables}


def local(project: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script from elsewhere."""
    elsewhere = project.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return subprocess.run(
        ["bash", str(project / "jobs" / "local.sh"), *arguments],
        cwd=elsewhere,
        env=environment(project, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def launched(project: Path) -> str:
    """How mpirun was called; "" if it was not."""
    calls = (project / "calls").read_text().splitlines() if (project / "calls").exists() else []
    return next((line for line in calls if line.startswith("mpirun")), "")


@pytest.mark.parametrize("arguments", [(), ("dynamics.temperature_K=400", "name=hot"), ("model=mace-mpa-0",)])
def test_without_materials_it_is_the_demo(project, arguments):
    assert local(project, *arguments).returncode == 0
    assert launched(project).endswith(" ".join(["-m driver run campaign=demo", *arguments]))
    assert "-n 4 " in launched(project) and "--oversubscribe" in launched(project)


@pytest.mark.parametrize(
    "choice",
    ["campaign=smoke", "materials=structures", "materials.structures=[a b.cif]", "+materials.formulas=[CsSnBr3]"],
)
def test_a_campaign_of_ones_own_gets_nothing_of_the_demo(project, choice):
    assert local(project, choice, "name=mine").returncode == 0
    assert launched(project).endswith(f"-m driver run {choice} name=mine")


def test_what_plan_refuses_is_not_started(project):
    result = local(project, "name=refused")
    assert result.returncode == 2 and result.stderr == "latdyn: refused, with the remedy\n"
    assert result.stdout == "" and not launched(project)


def test_a_missing_mpirun_is_one_line_with_the_remedy(project):
    (project / ".venv" / "bin" / "mpirun").unlink()
    result = local(project)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "mpirun is missing; remove" in result.stderr


@pytest.mark.parametrize("workers", ["two", "0", "-1", "1.5"])
def test_workers_is_a_number(project, workers):
    result = local(project, WORKERS=workers)
    assert result.returncode == 2 and f"WORKERS={workers}: give the number" in result.stderr
    assert not launched(project)


def test_help_starts_nothing(project):
    result = local(project, "--help")
    assert result.returncode == 0 and "bash jobs/local.sh campaign=smoke" in result.stdout
    assert not (project / "calls").exists()


def test_ctrl_c_is_called_so_and_asks_for_a_drain(project):
    process = subprocess.Popen(
        ["bash", str(project / "jobs" / "local.sh")],
        cwd=project,
        env=environment(project, LASTS="yes"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    time.sleep(0.5)  # until its `wait`
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75
    assert error.startswith("latdyn: Ctrl-C: finishing what has begun") and "SIG" not in error
