"""How long a force call and a whole step take, and how much memory: a part of benchmarks/gpu.py."""

from __future__ import annotations

import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.gpu_device import STATE, gpu_id, query
from benchmarks.gpu_plan import Context, Row, crystal, evaluators, new_engine, synchronize

DTYPES = ("float32", "float64")
RATTLE_A = 0.05
LATER_WARM_UP = 2
"""Force calls before a larger batch is timed, its code being compiled already."""


@dataclass(frozen=True)
class Case:
    """What is measured."""

    model: str
    dtype: str
    evaluator: str
    cells: int


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements, in seconds, and how many there were."""

    median_s: float
    quartiles_s: tuple[float, float]
    count: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Summarise at least one measurement."""
        low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (seconds[0],) * 3
        return cls(statistics.median(seconds), (low, high), len(seconds))


def speed(context: Context) -> Iterator[Row]:
    """Measure all cases, small batches first, so that the largest are left out if time is short."""
    usable = evaluators(context.device)
    bench = Bench(context)
    for cells, dtype, evaluator, model in itertools.product(context.plan.cells, DTYPES, usable, context.plan.models):
        case = Case(model, dtype, evaluator, cells)
        row: Row = {**asdict(case), "atoms": cells * context.plan.atoms}
        try:
            reason = usable[evaluator] or bench.reason_to_skip(case)
            yield {**row, **({"skipped": reason} if reason else bench.measure(case))}
        except Exception as error:
            yield {**row, **bench.failed(case, error)}


class Bench:
    """Measures cases, and remembers what the smaller ones took."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._plan = context.plan
        self._engines: dict[str, Any] = {}
        self._taken: dict[tuple[str, str, str], tuple[int, Row]] = {}
        self._hopeless: set[tuple[str, str, str]] = set()

    def reason_to_skip(self, case: Case) -> str:
        """Return why a case would take too long or too much memory, judging by the next smaller one; "" if not."""
        kind = (case.model, case.dtype, case.evaluator)
        if kind in self._hopeless:
            return "the next smaller batch did not work"
        if kind not in self._taken:
            return "" if self._context.left_s() > 0 else "no time left"
        cells, before = self._taken[kind]
        larger = case.cells / cells
        calls = LATER_WARM_UP + self._plan.least + 1
        steps = (self._plan.least + 2) * _poll_steps()
        predicted_s = larger * (before["force_call"]["median_s"] * calls + before["step"]["median_s"] * steps)
        left_s = self._context.left_s()
        if predicted_s > left_s:
            return f"no time: about {predicted_s:.0f} s, and {max(left_s, 0.0):.0f} s are left"
        needed, available = before.get("peak_bytes"), before.get("available_bytes")
        if needed and larger * needed > available:
            return f"no memory: about {larger * needed / 1e9:.1f} GB, and there are {available / 1e9:.1f} GB"
        return ""

    def failed(self, case: Case, error: Exception) -> Row:
        """Return what to say of a case that raised; running out of memory is an answer, not a failure."""
        import torch

        from driver.engine.memory import ran_out

        self._hopeless.add((case.model, case.dtype, case.evaluator))
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if ran_out(error):
            error.__traceback__ = None  # it holds the tensors
            torch.cuda.empty_cache()
            return {"skipped": f"no memory: {text[:120]}"}
        return {"failure": text}

    def measure(self, case: Case) -> Row:
        """Time force calls and steps of a case, and measure its memory."""
        import torch

        kind = (case.model, case.dtype, case.evaluator)
        device, model = self._context.device, self._context.model(case.model)
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
        unit = crystal(case.model, self._plan.atoms)
        engine = self._engines.setdefault(case.evaluator, new_engine(device, case.evaluator))
        began = time.perf_counter()
        evaluator = engine.evaluator(model, set(unit.numbers), case.dtype)
        row: Row = {"set_up_s": time.perf_counter() - began}
        row |= self._force_calls(case, evaluator, first=kind not in self._taken)
        row |= self._steps(case, engine, model, unit)
        atoms = case.cells * len(unit)
        for name in ("force_call", "step"):
            row[name]["us_per_atom"] = 1e6 * row[name]["median_s"] / atoms
        for name in ("peak_bytes", "peak_reserved_bytes"):
            if row.get(name) is not None:
                row[f"{name}_per_atom"] = row[name] / atoms
        if torch.device(device).type == "cuda":
            row["gpu"] = query(STATE, gpu_id(torch.device(device).index or 0))
        self._taken[kind] = (case.cells, row)
        return row

    def _force_calls(self, case: Case, evaluator: Any, *, first: bool) -> Row:
        """Time energies and forces of a batch, each call from the host's request to the device's last word.

        Atoms are moved a little before each call, so that the number of neighbours changes as it does in dynamics.
        """
        import torch

        from driver.engine.batch import StructureBatch
        from driver.engine.memory import MemoryMeter
        from driver.engine.neighbors import NeighborList

        structures = [crystal(case.model, self._plan.atoms, rattle_A=RATTLE_A, seed=i) for i in range(case.cells)]
        batch = StructureBatch.from_structures(structures, dtype=evaluator.dtype, device=evaluator.device)
        neighbors = NeighborList(evaluator.cutoff_A)
        # Forth and back by less than half the skin: no search in between.
        shift = 0.01 * torch.sign(batch.positions - batch.positions.mean(0, keepdim=True))
        began = time.perf_counter()
        neighbors.update(batch)
        synchronize(self._context.device)
        row: Row = {"neighbor_search_s": time.perf_counter() - began}
        meter = MemoryMeter(evaluator.device)
        calls = itertools.count()

        def call() -> None:
            moved = batch.moved(batch.positions + shift * (next(calls) % 4))
            evaluator.evaluate(moved, neighbors)
            synchronize(self._context.device)

        began = time.perf_counter()
        call()
        row["first_call_s"] = time.perf_counter() - began
        for _ in range(self._plan.warm_up if first else LATER_WARM_UP):
            call()
        meter.start()
        row["force_call"] = asdict(Spread.of(self._timed(call)))
        row |= {"edges": len(neighbors.update(batch)), "peak_bytes": None, "peak_reserved_bytes": None}
        memory = meter.read()
        if memory is not None:
            row |= {
                "peak_bytes": memory.peak_bytes,
                "available_bytes": memory.available_bytes,
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(evaluator.device),
            }
        return row

    def _timed(self, call: Callable[[], None]) -> list[float]:
        seconds: list[float] = []
        while len(seconds) < self._plan.least or (sum(seconds) < self._plan.timed_s and len(seconds) < self._plan.most):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        return seconds

    def _steps(self, case: Case, engine: Any, model: Any, unit: Any) -> Row:
        """Time steps of the stage dynamics as a campaign runs it, frames and checks included, set-up not.

        The stage asks every few steps whether to stop; what passes between two questions is measured. On a GPU the host
        also counts how often it had to wait for the device, in the last of these stretches.
        """
        from driver.archive.records import TaskKey
        from driver.settings import DynamicsSettings, SupercellSettings
        from driver.stages.dynamics import dynamics
        from driver.tasks import TaskInput

        watch = StepWatch(self._plan.least, self._plan.most, self._plan.timed_s, self._context.device)
        length_ps = 2e-3 * _poll_steps() * (self._plan.most + 4)
        settings = DynamicsSettings(
            dtype=case.dtype, equilibration_ps=0.0, production_ps=length_ps, segment_ps=length_ps
        )
        tasks = [TaskInput(TaskKey(f"c{i}", "benchmark", "dynamics", 0), unit) for i in range(case.cells)]
        cell = SupercellSettings((1, 1, 1))
        outcomes = list(dynamics(tasks, model, engine, cell, settings, seed=0, stop=watch.stop))
        if outcomes:
            raise RuntimeError(f"steps ended early: {outcomes[0]}")
        return {"step": asdict(Spread.of([s / _poll_steps() for s in watch.seconds])), "waits_per_step": watch.waits}


class StepWatch:
    """Takes the time whenever a stage asks whether to stop, until it has been asked often enough.

    The first stretch is left out. In one more stretch at the end it is counted how often the host waits for the GPU.
    """

    def __init__(self, least: int, most: int, timed_s: float, device: str) -> None:
        self.seconds: list[float] = []
        self.waits: float | None = None
        self._least, self._most, self._timed_s = least, most, timed_s
        self._device = device
        self._last: float | None = None
        self._started = False
        self._counting: warnings.catch_warnings[list[warnings.WarningMessage]] | None = None
        self._noted: list[warnings.WarningMessage] = []

    def stop(self) -> bool:
        """Note the time; return whether there is enough."""
        if self._counting is not None:
            return self._counted()
        synchronize(self._device)
        now = time.perf_counter()
        if self._started and self._last is not None:
            self.seconds.append(now - self._last)
        self._started, self._last = self._last is not None, now
        count, total = len(self.seconds), sum(self.seconds)
        if count < self._least or (total < self._timed_s and count < self._most):
            return False
        return self._count()

    def _count(self) -> bool:
        """Let torch warn whenever the host waits; return whether that cannot be (there is no GPU)."""
        import torch

        if torch.device(self._device).type != "cuda":
            return True
        self._counting = warnings.catch_warnings(record=True)
        self._noted = self._counting.__enter__() or []
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        return False

    def _counted(self) -> bool:
        import torch

        torch.cuda.set_sync_debug_mode("default")
        if self._counting is not None:
            self._counting.__exit__(None, None, None)
        self.waits = sum("synchroniz" in str(note.message) for note in self._noted) / _poll_steps()
        return True


def _poll_steps() -> int:
    from driver.stages.dynamics import STOP_POLL_STEPS

    return STOP_POLL_STEPS
