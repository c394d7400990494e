"""Stage displace: forces in displaced supercells, and from them force constants, by phonopy.

The displaced cells of a material, and those of other materials as far as the memory goes, are evaluated side by side.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from phonopy import Phonopy
from phonopy.harmonic.force_constants import compact_fc_to_full_fc

from driver.archive.records import Array, Scalar, Structure, TaskFailure, TaskKey, TaskResult
from driver.batch_size import BatchSize, BatchSizer, size_of
from driver.engine.batch import StructureBatch
from driver.engine.choice import Choice, together
from driver.engine.engine import Engine
from driver.engine.interface import Evaluator
from driver.engine.memory import MemoryMeter, ran_out
from driver.engine.neighbors import NeighborList
from driver.errors import TaskError
from driver.models import ModelFile
from driver.settings import DisplaceSettings, SupercellSettings
from driver.stages.checks import check_structure
from driver.stages.outcomes import attempted, failure, known_elements
from driver.structures.convert import from_phonopy, to_phonopy
from driver.structures.supercells import phonopy_matrix, supercell_matrix
from driver.tasks import TaskInput

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Cells:
    """A material and its supercells: the perfect one and, per distance, the displaced ones."""

    key: TaskKey
    unit: Structure
    phonopy: Phonopy
    perfect: Structure
    datasets: dict[float, Any]
    displaced: dict[float, tuple[Structure, ...]]

    @property
    def structures(self) -> list[Structure]:
        """All cells: the perfect one first, then distance by distance."""
        return [self.perfect, *(cell for cells in self.displaced.values() for cell in cells)]


def displace(
    inputs: Sequence[TaskInput],
    model: ModelFile,
    engine: Engine,
    supercell: SupercellSettings,
    settings: DisplaceSettings,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[TaskResult | TaskFailure]:
    """Compute displacement forces and force constants.

    Parameters
    ----------
    inputs : sequence of TaskInput
        Relaxed unit cells.
    model : ModelFile
    engine : Engine
    supercell : SupercellSettings
    settings : DisplaceSettings
    stop : callable
        Asked between materials and between batches; once it returns True, the stage ends and yields nothing for
        unfinished tasks.

    Yields
    ------
    TaskResult or TaskFailure
        One per input.

    Raises
    ------
    torch.OutOfMemoryError
        If a single supercell does not fit.
    """
    usable, failures = known_elements(inputs, model, engine)
    yield from failures
    prepared: list[_Cells] = []
    for task in usable:
        if stop():
            return
        try:
            prepared.append(_displaced_cells(task, supercell, settings))
        except Exception as error:
            yield failure(task.key, error)
    choices = engine.choose(model, [cells.unit for cells in prepared], settings.dtype, "displace")
    sizer = engine.batch_sizer(model, settings.dtype)
    for members in together(choices):
        structures = [s for index in members for s in prepared[index].structures]
        evaluated = _evaluate(structures, choices[members[0]].evaluator, sizer, stop)
        for index in members:
            own = list(itertools.islice(evaluated, len(prepared[index].structures)))
            if len(own) < len(prepared[index].structures) or stop():
                return
            yield attempted(prepared[index].key, partial(_result, prepared[index], own, choices[index], settings))


def _displaced_cells(task: TaskInput, supercell: SupercellSettings, settings: DisplaceSettings) -> _Cells:
    check_structure(task.structure)
    matrix = phonopy_matrix(supercell_matrix(task.structure, supercell))
    phonopy = Phonopy(to_phonopy(task.structure), matrix, primitive_matrix="auto", symprec=settings.symprec_A)
    datasets: dict[float, Any] = {}
    displaced: dict[float, tuple[Structure, ...]] = {}
    for distance in settings.distances_A:
        phonopy.generate_displacements(distance=distance)
        datasets[distance] = phonopy.dataset
        displaced[distance] = tuple(from_phonopy(cell) for cell in phonopy.supercells_with_displacements or ())
    return _Cells(task.key, task.structure, phonopy, from_phonopy(phonopy.supercell), datasets, displaced)


def _evaluate(
    structures: Sequence[Structure], evaluator: Evaluator, sizer: BatchSizer, stop: Callable[[], bool]
) -> Iterator[tuple[float, FloatArray]]:
    """Yield energy in eV and forces (n, 3) in eV/angstrom of each structure, many evaluated at once; end if told to."""
    meter = MemoryMeter(evaluator.device)
    done = 0
    while done < len(structures) and not stop():
        count, size = _fitting(structures[done:], sizer.capacity)
        began = time.perf_counter()
        meter.start()
        evaluated = None
        try:
            evaluated = _evaluate_together(structures[done : done + count], evaluator)
        except Exception as error:
            if count == 1 or not ran_out(error):
                raise
        if evaluated is None:
            # Only out here has the exception let go of the tensors that it was raised among.
            torch.cuda.empty_cache()
            sizer.refused(size)
            continue
        sizer.fitted(size, time.perf_counter() - began, meter.read())
        yield from evaluated
        done += count


def _evaluate_together(structures: Sequence[Structure], evaluator: Evaluator) -> list[tuple[float, FloatArray]]:
    batch = StructureBatch.from_structures(structures, dtype=evaluator.dtype, device=evaluator.device)
    evaluation = evaluator.evaluate(batch, NeighborList(evaluator.cutoff_A, skin_A=0.0))
    forces = evaluation.forces.double().cpu().numpy()
    energies = evaluation.energy.cpu().numpy()
    return list(zip(energies.tolist(), np.split(forces, np.cumsum(batch.counts)[:-1]), strict=True))


def _fitting(structures: Sequence[Structure], capacity: BatchSize) -> tuple[int, BatchSize]:
    """Return how many structures from the beginning are within a capacity together, at least one, and their size."""
    size, count = size_of(structures[0]), 1
    for structure in structures[1:]:
        larger = size + size_of(structure)
        if not larger.within(capacity):
            break
        size, count = larger, count + 1
    return count, size


def _result(
    cells: _Cells, evaluated: list[tuple[float, FloatArray]], choice: Choice, settings: DisplaceSettings
) -> TaskResult:
    residual = evaluated[0][1]
    if not all(np.isfinite(energy) and np.isfinite(forces).all() for energy, forces in evaluated):
        raise TaskError("forces in a displaced supercell are not finite")
    phonopy = cells.phonopy
    arrays = {
        "supercell/numbers": Array(cells.perfect.numbers),
        "supercell/positions": Array(cells.perfect.positions, "angstrom"),
        "supercell/cell": Array(cells.perfect.cell, "angstrom"),
        "supercell/masses": Array(np.array(phonopy.supercell.masses), "u"),
        "supercell_matrix": Array(np.array(phonopy.supercell_matrix, dtype=np.int64)),
        "primitive_matrix": Array(np.array(phonopy.primitive_matrix, dtype=np.float64)),
        "residual_forces": Array(residual, "eV angstrom-1"),
    }
    drift, asymmetry, begin = 0.0, 0.0, 1
    for distance, displaced in cells.displaced.items():
        part = evaluated[begin : begin + len(displaced)]
        begin += len(displaced)
        forces = np.stack([f for _, f in part])
        drift = max(drift, float(np.linalg.norm(forces.mean(axis=1), axis=1).max()))
        asymmetry = max(asymmetry, _fit(phonopy, cells.datasets[distance], forces - residual, settings.symmetrize))
        group = f"d{distance:.4f}"
        displacements = np.stack([s.positions - cells.perfect.positions for s in displaced])
        arrays |= {
            f"{group}/displacements": Array(displacements, "angstrom"),
            f"{group}/forces": Array(forces, "eV angstrom-1"),
            f"{group}/energies": Array(np.array([e for e, _ in part]), "eV"),
            **_force_constant_arrays(phonopy, group),
        }
    scalars: dict[str, Scalar] = {
        "atoms": len(cells.perfect),
        "displacements": len(evaluated) - 1,
        "max_residual_force_eV_A": float(np.linalg.norm(residual, axis=1).max()),
        "max_drift_force_eV_A": drift,
        "fc_asymmetry_eV_A2": asymmetry,
    }
    return TaskResult(
        cells.key, scalars, arrays, choice.attributes(), evaluator=choice.evaluator.name, dtype=settings.dtype
    )


def _fit(phonopy: Phonopy, dataset: Any, forces: FloatArray, symmetrize: bool) -> float:
    """Fit force constants to forces (D, N, 3) and leave them in `phonopy`; return their asymmetry as fitted."""
    phonopy.dataset = dataset
    phonopy.forces = forces - forces.mean(axis=1, keepdims=True)
    phonopy.produce_force_constants(calculate_full_force_constants=False, show_drift=False)
    fitted = np.asarray(phonopy.force_constants)
    asymmetry = force_constant_asymmetry(compact_fc_to_full_fc(phonopy.primitive, fitted))
    if symmetrize:
        phonopy.symmetrize_force_constants(show_drift=False)
    return asymmetry


def force_constant_asymmetry(force_constants: FloatArray) -> float:
    """Return how far full force constants are from their two symmetries.

    Parameters
    ----------
    force_constants : (N, N, 3, 3) float
        In eV/angstrom^2.

    Returns
    -------
    float
        The largest |phi_ij^ab - phi_ji^ba| (permutation) or |sum_j phi_ij^ab| (translation), in eV/angstrom^2.
    """
    permutation = np.abs(force_constants - force_constants.transpose(1, 0, 3, 2)).max()
    translation = np.abs(force_constants.sum(axis=1)).max()
    return float(max(permutation, translation))


def _force_constant_arrays(phonopy: Phonopy, group: str) -> dict[str, Array]:
    """Return compact force constants with their maps, and what `phonopy.load` needs to make them again."""
    settings = {"force_sets": True, "displacements": True, "force_constants": False}
    return {
        f"{group}/force_constants": Array(np.array(phonopy.force_constants), "eV angstrom-2"),
        f"{group}/p2s_map": Array(np.array(phonopy.primitive.p2s_map, dtype=np.int64)),
        f"{group}/s2p_map": Array(np.array(phonopy.primitive.s2p_map, dtype=np.int64)),
        f"{group}/phonopy_yaml": Array(str(phonopy.to_phonopy_yaml(settings=settings))),
    }
