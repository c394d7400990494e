"""Do the stages survive running out of memory: a part of benchmarks/gpu.py.

Batches are forced into a third of the memory that they need. The stage displace makes them smaller by itself; a lease
of dynamics fails as a whole and its halves are run, as the scheduler does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu_plan import Context, Row, crystal, new_engine, synchronize

SHARE = 0.35
"""Of what the forced batch needs, the memory that there is: half of it does not fit, a quarter does."""
STEPS = 10
RELATIVE_TOLERANCE = 1e-6
"""Of force constants in double precision, whose batches are summed in another order."""
POSITION_TOLERANCE_A = 1e-3
"""After a few steps in single precision: far less than atoms move."""


def exhaustion(context: Context) -> Iterator[Row]:
    """Let displacements and dynamics run out of memory, and compare their results with those of small batches."""
    yield _guarded("displace", context, _displacements)
    yield _guarded("dynamics", context, _dynamics)
    yield _guarded("afterwards", context, _afterwards)


def _guarded(stage: str, context: Context, check: Any) -> Row:
    try:
        return {"stage": stage, **check(context)}
    except Exception as error:
        return {"stage": stage, "failure": f"{type(error).__name__}: {error}"}


def _displacements(context: Context) -> Row:
    from driver.archive.records import TaskKey, TaskResult
    from driver.settings import DisplaceSettings, SupercellSettings
    from driver.stages.displace import displace
    from driver.tasks import TaskInput

    model = context.model("demo")
    structure = crystal("demo", 10)
    task = TaskInput(TaskKey("crystal", "benchmark", "displace"), structure)
    cell = SupercellSettings((2, 2, 2))

    def run(capacity_atoms: int, distances: int) -> tuple[Any, Any]:
        settings = DisplaceSettings(distances_A=tuple(0.01 * (i + 1) for i in range(distances)))
        engine = new_engine(context.device, "torch", capacity_atoms)
        (result,) = displace([task], model, engine, cell, settings)
        assert isinstance(result, TaskResult), result
        return result, engine.batch_sizer(model, settings.dtype).capacity

    atoms = 8 * len(structure)
    single, _ = run(2 * atoms, 1)
    distances = max(2, round(context.plan.exhaustion_cells / max(1, int(single.scalars["displacements"]))))
    small, _ = run(2 * atoms, distances)
    forced = atoms * (int(small.scalars["displacements"]) + 1)
    with limited(context, "demo", "float64", forced) as limit:
        large, capacity = run(forced, distances)
    differences = [
        float(np.abs(large.arrays[name].value - array.value).max() / np.abs(array.value).max())
        for name, array in small.arrays.items()
        if name.endswith("force_constants")
    ]
    row: Row = {"atoms": forced, "capacity_left": capacity.atoms, **limit, "relative_difference": max(differences)}
    if capacity.atoms >= forced:
        row["failure"] = "memory did not run out, although there was too little"
    elif not max(differences) <= RELATIVE_TOLERANCE:
        row["failure"] = f"force constants differ by {max(differences):.1e} of the largest after memory ran out"
    return row


def _dynamics(context: Context) -> Row:
    from driver.archive.records import TaskKey, TaskResult
    from driver.settings import DynamicsSettings, EngineSettings, ExecutionSettings, Settings, SupercellSettings
    from driver.stages.dispatch import EngineRunner
    from driver.tasks import TaskInput

    model = context.model("demo")
    structure = crystal("demo", 80)
    cells = context.plan.exhaustion_cells
    length = STEPS * 2e-3
    settings = Settings(
        "gpu",
        supercell=SupercellSettings((1, 1, 1)),
        dynamics=DynamicsSettings(equilibration_ps=0.0, production_ps=length, segment_ps=length),
        engine=EngineSettings(evaluator="torch"),
        execution=ExecutionSettings(device=context.device),
    )
    runner = EngineRunner(context.device, threads(), settings)
    tasks = [TaskInput(TaskKey(f"c{i}", "benchmark", "dynamics", 0), structure) for i in range(cells)]
    ran_out: list[int] = []

    def run(lease: Sequence[TaskInput]) -> dict[str, Any]:
        """Run a lease, or its halves if memory runs out, as the scheduler does."""
        results = None
        try:
            results = list(runner.run("dynamics", lease, model, lambda: False))
        except Exception as error:
            if len(lease) == 1 or not runner.release_memory(error):
                raise
        if results is None:
            ran_out.append(len(lease))
            middle = len(lease) // 2
            return run(lease[:middle]) | run(lease[middle:])
        assert all(isinstance(result, TaskResult) for result in results), results
        return {result.key.material: result for result in results}

    small = {key: result for task in tasks for key, result in run([task]).items()}
    with limited(context, "demo", "float32", 80 * cells) as limit:
        large = run(tasks)
    differences = [
        float(np.abs(large[key].arrays[path].value - small[key].arrays[path].value).max())
        for key in small
        for path in small[key].arrays
        if path.endswith("position/value")
    ]
    row: Row = {"atoms": 80 * cells, "batches_too_large": ran_out, **limit, "difference_A": max(differences)}
    if not ran_out:
        row["failure"] = "memory did not run out, although there was too little"
    elif not max(differences) <= POSITION_TOLERANCE_A:
        row["failure"] = f"positions differ by {max(differences):.1e} A after memory ran out"
    return row


def _afterwards(context: Context) -> Row:
    """The whole batch fits again once there is memory."""
    atoms = 80 * context.plan.exhaustion_cells
    bytes_needed, _ = needed(context, "demo", "float32", atoms)
    return {"atoms": atoms, "bytes_needed": bytes_needed}


@contextlib.contextmanager
def limited(context: Context, model: str, dtype: str, atoms: int) -> Iterator[Row]:
    """Leave a batch of so many atoms a third of the memory that it needs; yield how much that is."""
    import torch

    device = torch.device(context.device)
    if device.type != "cuda":
        with _pretended(SHARE * atoms):
            yield {"limit": f"pretended: {SHARE * atoms:.0f} atoms"}
        return
    bytes_needed, held = needed(context, model, dtype, atoms)
    limit = held + SHARE * bytes_needed
    torch.cuda.empty_cache()
    index = device.index or 0  # "cuda" alone is refused here
    share = limit / torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(share, index)
    try:
        yield {"bytes_needed": bytes_needed, "bytes_limit": limit}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)
        torch.cuda.empty_cache()


def needed(context: Context, model: str, dtype: str, atoms: int) -> tuple[float, float]:
    """Return the bytes that a force call on a batch of so many atoms needs, and those that were allocated before."""
    import torch

    from driver.engine.batch import StructureBatch
    from driver.engine.memory import MemoryMeter
    from driver.engine.neighbors import NeighborList

    structure = crystal("demo", 80, rattle_A=0.05)
    evaluator = new_engine(context.device, "torch").evaluator(context.model(model), set(structure.numbers), dtype)
    structures = [structure] * max(1, round(atoms / 80))
    batch = StructureBatch.from_structures(structures, dtype=evaluator.dtype, device=evaluator.device)
    meter = MemoryMeter(evaluator.device)
    for _ in range(4):  # the first calls are those of code that is not compiled yet
        meter.start()
        forces = evaluator.evaluate(batch, NeighborList(evaluator.cutoff_A, 0.0)).forces
        synchronize(context.device)
    assert bool(torch.isfinite(forces).all())
    memory = meter.read()
    held = torch.cuda.memory_allocated(evaluator.device) if memory is not None else 0
    return (memory.peak_bytes if memory is not None else 0.0), held


def threads() -> int:
    """Return the CPU threads that torch has."""
    import torch

    return torch.get_num_threads()


@contextlib.contextmanager
def _pretended(most_atoms: float) -> Iterator[None]:
    """On a CPU: let the evaluator behave as on a GPU that holds so many atoms."""
    import torch

    from driver.engine.evaluator import TorchEvaluator

    evaluate = TorchEvaluator.evaluate

    def limited_evaluate(self: Any, batch: Any, *arguments: Any, **options: Any) -> Any:
        if len(batch.positions) > most_atoms:
            raise torch.OutOfMemoryError(f"pretended: no memory for {len(batch.positions)} atoms")
        return evaluate(self, batch, *arguments, **options)

    TorchEvaluator.evaluate = limited_evaluate  # type: ignore[method-assign]
    try:
        yield
    finally:
        TorchEvaluator.evaluate = evaluate  # type: ignore[method-assign]
