"""benchmarks/gpu.py: all of it on a CPU with tiny sizes, and its judgement where only a GPU would call for it."""

from __future__ import annotations

import argparse
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_memory
from benchmarks.gpu_checks import TOLERANCES, _compared
from benchmarks.gpu_device import FIELDS, STATE, query
from benchmarks.gpu_plan import QUICK, Context
from benchmarks.gpu_report import text
from benchmarks.gpu_speed import Bench, Case, Spread, StepWatch

ROOT = Path(__file__).resolve().parents[2]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_all_parts_on_a_cpu(tmp_path):
    run = command("--quick", "--device", "cpu", "--json", str(tmp_path / "found.json"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-2] == "nothing failed"
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["failures"] == []
    assert found["device"]["device"] == "cpu"
    assert found["device"]["versions"]["torch"]
    parts = {name: part["rows"] for name, part in found["parts"].items()}
    (campaign,) = parts["campaign"]
    assert (campaign["exit_code"], campaign["devices"], campaign["evaluators"]) == (0, ["cpu"], ["torch"])
    assert campaign["tasks"] == {"relax": 2, "displace": 2, "dynamics": 4}
    torch_rows = [row for row in parts["agreement"] if row["evaluator"] == "torch"]
    assert [row["dtype"] for row in torch_rows] == ["float64", "float32"]
    assert 0.0 < torch_rows[1]["forces_eV_A"]["difference"] < torch_rows[1]["forces_eV_A"]["allowed"]
    displace, dynamics, _ = parts["exhaustion"]
    assert displace["capacity_left"] < displace["atoms"]
    assert dynamics["batches_too_large"][0] == QUICK.exhaustion_cells
    measured = [row for row in parts["speed"] if row["evaluator"] == "torch"]
    assert [(row["dtype"], row["cells"]) for row in measured] == [
        (dtype, cells) for cells in QUICK.cells for dtype in ("float32", "float64")
    ]
    for row in measured:
        assert row["step"]["count"] >= QUICK.least
        assert row["step"]["us_per_atom"] == pytest.approx(1e6 * row["step"]["median_s"] / row["atoms"])
    others = [row for rows in parts.values() for row in rows if row.get("evaluator") == "torch+cuequivariance"]
    assert {row["skipped"] for row in others} == {"it has no kernels for a CPU"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_a_line():
    run = command()
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert "finds no GPU here" in run.stderr


def options(**others):
    return argparse.Namespace(device="cpu", quick=True, **others)


def test_a_part_that_crashes_or_is_late_is_a_failure_of_it_alone(tmp_path):
    crashed = gpu.run_part("nonsense", tmp_path, options(), 60.0)
    assert crashed["failures"] == ["its process ended with 1: KeyError: 'nonsense'"]
    late = gpu.run_part("exhaustion", tmp_path, options(), 0.0)
    assert late["failures"] == ["stopped after 0 s"]
    assert late["rows"] == []


def test_what_a_part_has_found_before_it_raises_is_kept(tmp_path, monkeypatch):
    def broken(context):
        yield {"found": 1}
        raise ArithmeticError("two\nlines")

    monkeypatch.setitem(gpu.PARTS, "speed", broken)
    gpu._be("speed", QUICK, "cpu", tmp_path, 1.0)
    first, last = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert first == {"found": 1}
    assert gpu.described(last) == "ArithmeticError: two lines"
    assert "broken" in last["traceback"]


@pytest.mark.parametrize("wrong", [1.01, np.nan])
def test_a_difference_beyond_rounding_is_a_failure(wrong):
    names = ("energy_eV_atom", "forces_eV_A", "stress_eV_A3")
    expected = {name: np.array([1.0, -2.0]) for name in names}
    tolerance = TOLERANCES["float32"]
    assert "failure" not in _compared(expected, expected, tolerance)
    within = {**expected, "forces_eV_A": expected["forces_eV_A"] + 1.9 * tolerance.relative}
    assert "failure" not in _compared(within, expected, tolerance)
    found = {**expected, "forces_eV_A": np.array([wrong, -2.0])}
    assert _compared(found, expected, tolerance)["failure"].startswith("forces_eV_A differs by")


def bench(left_s: float) -> Bench:
    made = Bench(Context("cpu", QUICK, Path(), 0.0))
    made._context = type("Context", (), {"left_s": lambda self: left_s, "plan": QUICK})()
    measured = {"force_call": {"median_s": 0.1}, "step": {"median_s": 0.2}, "peak_bytes": 2e9, "available_bytes": 9e9}
    made._taken["small", "float32", "torch"] = (8, measured)
    return made


@pytest.mark.parametrize(
    ("left_s", "cells", "reason"),
    [(100.0, 16, ""), (5.0, 16, "no time: about 9 s, and 5 s are left"), (1e4, 64, "no memory: about 16.0 GB")],
)
def test_leaves_out_what_does_not_fit(left_s, cells, reason):
    said = bench(left_s).reason_to_skip(Case("small", "float32", "torch", cells))
    assert said.startswith(reason)
    assert bool(said) == bool(reason)


def test_running_out_of_memory_is_an_answer_and_another_error_a_failure():
    case = Case("small", "float32", "torch", 64)
    made = bench(1e4)
    assert made.failed(case, torch.OutOfMemoryError("CUDA out of memory.\nmore")) == {
        "skipped": "no memory: OutOfMemoryError: CUDA out of memory."
    }
    assert made.reason_to_skip(Case("small", "float32", "torch", 512)) == "the next smaller batch did not work"
    assert made.failed(case, ValueError("shapes")) == {"failure": "ValueError: shapes"}


def test_steps_are_timed_until_there_are_enough():
    watch = StepWatch(least=3, most=50, timed_s=0.0, device="cpu")
    asked = 0
    while not watch.stop():
        asked += 1
    assert len(watch.seconds) == 3
    assert asked == 4  # the first stretch, which is not counted, has two ends
    assert watch.waits is None
    assert Spread.of([3.0, 1.0, 2.0]).median_s == 2.0


def test_memory_is_limited_to_a_share_and_given_back(monkeypatch):
    given = []
    monkeypatch.setattr(gpu_memory, "needed", lambda *arguments: (1000.0, 50.0))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: argparse.Namespace(total_memory=10_000.0))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *arguments: given.append(arguments))
    context = Context("cuda", QUICK, Path(), 0.0)
    with pytest.raises(ValueError, match="inside"), gpu_memory.limited(context, "demo", "float32", 80):
        raise ValueError("inside")
    share = (50.0 + gpu_memory.SHARE * 1000.0) / 10_000.0
    assert given == [(pytest.approx(share), 0), (1.0, 0)]  # torch wants a number here


def nvidia_smi(folder: Path, unknown: str = "none") -> None:
    """Write a stand-in that answers each field with its name, or fails for all if one is unknown, as the real one."""
    script = folder / "nvidia-smi"
    script.write_text(
        f"""#!{sys.executable}
import sys
fields = [a for a in sys.argv if a.startswith("--query-gpu=")][0].split("=")[1].split(",")
if "{unknown}" in fields or "MIG-1" in sys.argv:
    sys.exit("not valid")
print(", ".join(field.upper() for field in fields))
"""
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)


def test_asks_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert query(FIELDS, "GPU-1") == {}
    nvidia_smi(tmp_path)
    assert query(FIELDS, "GPU-1") == {ours: theirs.upper() for ours, theirs in FIELDS.items()}
    assert query(FIELDS, "MIG-1") == query(FIELDS, "GPU-1")
    nvidia_smi(tmp_path, unknown="clocks_event_reasons.active")
    assert query(STATE)["throttled"] == "CLOCKS_THROTTLE_REASONS.ACTIVE"
    nvidia_smi(tmp_path, unknown="mig.mode.current")
    assert query(FIELDS).keys() == FIELDS.keys() - {"mig"}


def test_the_report_shows_figures_what_was_left_out_and_what_failed():
    timed = {"median_s": 0.08, "quartiles_s": [0.079, 0.085], "count": 5, "us_per_atom": 2.0}
    case = {"model": "small", "dtype": "float32", "evaluator": "torch", "atoms": 40960}
    rows = [
        {
            **case,
            "cells": 512,
            "force_call": timed,
            "step": timed,
            "waits_per_step": 2.2,
            "peak_bytes_per_atom": 1.5e6,
            "peak_reserved_bytes_per_atom": 2e6,
        },
        {**case, "cells": 1024, "skipped": "no memory: about 120.0 GB, and there are 90.0 GB"},
        {**case, "cells": 2048, "failure": "RuntimeError: broken"},
    ]
    device = {"device": "cuda", "name": "GPU X", "memory_bytes": 2**36, "cuda": "12.8", "versions": {"torch": "2"}}
    device |= {"host_cpu": "x86_64"}
    device["nvidia_smi"] = {"ecc": "Enabled", "mig": "Disabled"}
    said = text(
        {
            "device": device,
            "parts": {"speed": {"rows": rows, "failures": ["x"], "seconds": 3.0}},
            "failures": ["speed: x"],
        }
    )
    assert "cuda: GPU X, 64 GiB\nECC Enabled, MIG Disabled, CUDA 12.8, torch 2" in said
    assert "512 80.00 ms 2.00 80.00 ms 2.00 1.93 .. 2.08 1.50 2.00 2.2" in " ".join(said.split())
    assert "left out: no memory: about 120.0 GB, and there are 90.0 GB" in said
    assert "FAILED: RuntimeError: broken" in said
    assert said.splitlines()[-1] == "failed: speed: x"
