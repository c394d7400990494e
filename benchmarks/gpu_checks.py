"""Does a campaign run on this GPU, and are its numbers those of the CPU: two parts of benchmarks/gpu.py."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_plan import Context, Row, crystal, evaluators, new_engine

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Tolerance:
    """Largest differences allowed: of energies per atom, and of forces and stresses in units of the largest one."""

    energy_eV_atom: float
    relative: float


TOLERANCES = {"float64": Tolerance(1e-7, 1e-7), "float32": Tolerance(2e-5, 2e-4)}
"""Rounding, with room: in double precision also of constants that a file in single precision holds and cuEquivariance
makes anew (3e-9); TF32, which keeps three digits, is beyond it."""


def campaign(context: Context) -> Iterator[Row]:
    """Run the demo campaign as a user would, and look into its archive."""
    from driver.archive.reader import open_archive

    overrides = [
        *context.plan.campaign,
        f"execution.device={context.device}",
        # On a CPU, which then stands in for a GPU, the native evaluator would be compiled first.
        *(["engine.evaluator=torch"] if context.device == "cpu" else []),
    ]
    began = time.monotonic()
    run = subprocess.run(
        [sys.executable, "-m", "driver", "run", *overrides, "name=gpu", f"runs={context.folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    row: Row = {"overrides": overrides, "exit_code": run.returncode, "seconds": time.monotonic() - began}
    if run.returncode != 0:
        lines = (run.stderr or run.stdout).strip().splitlines() or ["it ended without a word"]
        yield {**row, "failure": f"the campaign ended with exit code {run.returncode}: {lines[-1]}", "log": lines[-30:]}
        return
    with open_archive(context.folder / "gpu" / "archive.h5") as view:
        tasks = view.table("tasks")
        row |= {
            "tasks": dict(Counter(tasks["stage"].tolist())),
            "devices": sorted(set(tasks["device"].tolist())),
            "evaluators": sorted(set(tasks["evaluator"].tolist())),
            "seconds_by_stage": {
                stage: float(tasks["seconds"][tasks["stage"] == stage].sum()) for stage in sorted(set(tasks["stage"]))
            },
        }
    wanted = context.device if re.search(r":|cpu", context.device) else f"{context.device}:"
    elsewhere = [device for device in row["devices"] if not device.startswith(wanted)]
    if elsewhere:
        row["failure"] = f"tasks ran on {', '.join(elsewhere)}, not on {context.device}"
    yield row


def agreement(context: Context) -> Iterator[Row]:
    """Compare energies, forces and stresses with those of the reference in double precision on the CPU."""
    for name in context.plan.models:
        model = context.model(name)
        structures = [
            crystal(name, 80, rattle_A=0.1, seed=1),
            crystal(name, 40, rattle_A=0.1, shear=0.05, seed=2),
        ]
        numbers = {int(z) for structure in structures for z in structure.numbers}
        expected = _evaluated(new_engine("cpu", "torch").evaluator(model, numbers, "float64"), structures)
        for evaluator, missing in evaluators(context.device).items():
            for dtype, tolerance in TOLERANCES.items():
                case = {"model": name, "dtype": dtype, "evaluator": evaluator}
                if missing:
                    yield {**case, "skipped": missing}
                    continue
                try:
                    engine = new_engine(context.device, evaluator)
                    found = _evaluated(engine.evaluator(model, numbers, dtype), structures)
                except Exception as error:
                    yield {**case, "failure": f"{type(error).__name__}: {error}"}
                    continue
                yield {**case, **_compared(found, expected, tolerance)}


def _evaluated(evaluator, structures: Sequence) -> dict:
    """Return energies per atom, forces and stresses as arrays."""
    import numpy as np

    from driver.engine.batch import StructureBatch
    from driver.engine.neighbors import NeighborList

    batch = StructureBatch.from_structures(structures, dtype=evaluator.dtype, device=evaluator.device)
    evaluation = evaluator.evaluate(batch, NeighborList(evaluator.cutoff_A), stress=True)
    return {
        "energy_eV_atom": evaluation.energy.cpu().numpy() / np.array(batch.counts),
        "forces_eV_A": evaluation.forces.double().cpu().numpy(),
        "stress_eV_A3": evaluation.stress.double().cpu().numpy(),
    }


def _compared(found: dict, expected: dict, tolerance: Tolerance) -> Row:
    """Return the largest differences, what was allowed, and which of them is too large."""
    row: Row = {}
    beyond = []
    for name, theirs in expected.items():
        largest = float(abs(theirs).max())
        allowed = tolerance.energy_eV_atom if name == "energy_eV_atom" else tolerance.relative * largest
        difference = float(abs(found[name] - theirs).max())
        row[name] = {"difference": difference, "allowed": allowed, "largest": largest}
        if not difference <= allowed:  # also where it is not a number
            beyond.append(f"{name} differs by {difference:.1e}, allowed {allowed:.1e}")
    if beyond:
        row["failure"] = "; ".join(beyond)
    return row
