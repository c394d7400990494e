"""What benchmarks/gpu.py does, at full length and in short, and what its parts share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
"""One finding of a part, as JSON. With "failure": what went wrong; with "skipped": why it was not tried."""


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes
    ----------
    campaign : tuple of str
        Overrides of `driver run`.
    models : tuple of str
        Names that `benchmarks.engine_contenders.make_model` knows.
    atoms : int
        Of one crystal in the measurements of speed and memory.
    cells : tuple of int
        Crystals per batch, ascending.
    warm_up : int
        Force calls before an evaluator is timed for the first time: its code is compiled meanwhile.
    least, most : int
        Timed force calls, and timed stretches of steps, per case.
    timed_s : float
        Between the two, timing goes on for so long.
    exhaustion_cells : int
        About how many displaced cells, or crystals, are forced into a memory that holds a third of them.
    limit_s : float
        For everything.
    part_limits_s : mapping
        For single parts; the others may take what is left.
    """

    campaign: tuple[str, ...]
    models: tuple[str, ...]
    atoms: int
    cells: tuple[int, ...]
    warm_up: int
    least: int
    most: int
    timed_s: float
    exhaustion_cells: int
    limit_s: float
    part_limits_s: Mapping[str, float] = field(default_factory=dict)


FULL = Plan(
    campaign=(
        "campaign=demo",
        "dynamics.equilibration_ps=0.05",
        "dynamics.production_ps=0.05",
        "dynamics.segment_ps=0.05",
    ),
    models=("small", "demo"),
    atoms=80,
    cells=(1, 8, 64, 512),
    warm_up=8,
    least=3,
    most=20,
    timed_s=1.5,
    exhaustion_cells=32,
    limit_s=450.0,
    part_limits_s={"campaign": 180.0, "agreement": 90.0, "exhaustion": 90.0},
)
QUICK = Plan(
    campaign=(
        "campaign=smoke",
        "dynamics.equilibration_ps=0.02",
        "dynamics.production_ps=0.02",
        "dynamics.segment_ps=0.02",
    ),
    models=("demo",),
    atoms=40,
    cells=(1, 2),
    warm_up=2,
    least=2,
    most=4,
    timed_s=0.2,
    exhaustion_cells=8,
    limit_s=400.0,
    part_limits_s={"campaign": 200.0, "agreement": 100.0, "exhaustion": 100.0},
)


@dataclass(frozen=True)
class Context:
    """What a part is given: where it computes, how much, a folder of its own, and until when (`time.monotonic`)."""

    device: str
    plan: Plan
    folder: Path
    end_s: float

    def left_s(self) -> float:
        """Return the seconds that are left."""
        return self.end_s - time.monotonic()

    def model(self, name: str) -> Any:
        """Return a model file, made if it is not there yet."""
        from benchmarks.engine_contenders import make_model, model_file

        path = self.folder / f"{name}.model"
        if not path.exists():
            make_model(name, self.folder)
        return model_file(path)


Part = Callable[[Context], Iterator[Row]]
"""Yields its findings as it makes them, so that none is lost if it fails or is stopped."""


def evaluators(device: str) -> dict[str, str]:
    """Return the evaluators to look at -> "" or why one is left out."""
    import torch

    from driver.engine.kernels import missing_packages

    if torch.device(device).type != "cuda":
        return {"torch": "", "torch+cuequivariance": "it has no kernels for a CPU"}
    missing = missing_packages(torch.device(device))
    return {"torch": "", "torch+cuequivariance": f"not installed: {', '.join(missing)}" if missing else ""}


def new_engine(device: str, evaluator: str, capacity_atoms: int | None = None) -> Any:
    """Return an engine whose reference is one of `evaluators`."""
    from driver.engine.engine import Engine
    from driver.settings import EngineSettings

    settings = EngineSettings(evaluator="torch", cuequivariance=evaluator.endswith("cuequivariance"))
    return Engine(device, settings=settings, capacity_atoms=capacity_atoms)


def crystal(model: str, atoms: int, *, rattle_A: float = 0.0, shear: float = 0.0, seed: int = 0) -> Any:
    """Return a double perovskite, its atoms moved at random and its cell sheared."""
    from benchmarks.engine_contenders import crystal_of
    from driver.archive.records import Structure
    from driver.structures.convert import from_ase

    perfect = from_ase(crystal_of(model, atoms))
    moves = np.random.default_rng(seed).uniform(-rattle_A, rattle_A, perfect.positions.shape)
    strain = np.eye(3) + shear * np.array([[0.0, 1.0, 0.5], [0.0, 0.3, -0.7], [0.0, 0.0, -0.2]])
    return Structure(perfect.numbers, (perfect.positions + moves) @ strain, perfect.cell @ strain)


def synchronize(device: str) -> None:
    """Wait until the device has done all that it was asked for."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
