"""A supercell whose matrix is not symmetric, of a crystal that is not cubic: from the settings to exported phonons."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import phonopy
import pytest
from ase.build import bulk
from ase.build import make_supercell as ase_supercell
from phonopy import Phonopy
from toy_potentials import LennardJones, ToyEngine

from analysis.anharmonic import displacements, harmonic_forces
from analysis.export import export
from analysis.harmonic import build_phonopy, commensurate_modes, full_force_constants
from analysis.inputs import force_constants
from driver.archive.h5md import read_trajectory
from driver.archive.reader import open_archive
from driver.archive.records import Structure, TaskKey, TaskResult
from driver.engine.calculator import BatchCalculator
from driver.models import ModelFile
from driver.settings import DisplaceSettings, DynamicsSettings, RelaxSettings, SupercellSettings
from driver.stages.displace import displace
from driver.stages.dynamics import dynamics
from driver.stages.relax import relax
from driver.structures.convert import from_ase, to_ase, to_phonopy
from driver.tasks import TaskInput

MATRIX = (2, 1, 0, 0, 2, 0, 0, -1, 2)
ROWS = np.reshape(MATRIX, (3, 3))
SUPERCELL = SupercellSettings(matrix=MATRIX)
MODEL = ModelFile("toy", None, "0" * 64)
PAIR = ("ArNe", "toy")
DYNAMICS = DynamicsSettings(
    temperature_K=1.0,
    timestep_fs=4.0,
    equilibration_ps=0.0,
    production_ps=0.4,
    segment_ps=0.4,
    frame_interval_fs=40.0,
    dtype="float64",
    frame_dtype="float64",
)


def crystal() -> Structure:
    """Close-packed planes, strained so that no symmetry is left to hide a transposed matrix."""
    atoms = bulk("Ar", "hcp", a=3.78, c=6.17)
    atoms.numbers = [18, 10]
    strain = np.eye(3) + np.array([[0.0, 0.03, -0.02], [0.03, 0.02, 0.04], [-0.02, 0.04, -0.01]])
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return from_ase(atoms)


def engine() -> ToyEngine:
    return ToyEngine(lambda dtype: LennardJones(dtype=dtype))


pytestmark = pytest.mark.filterwarnings("ignore:primitive_matrix defaulted")  # phonopy, although it was told


@pytest.fixture
def archive(builder) -> Path:
    """What the stages make of it, relaxed positions in a fixed cell."""
    builder.add_models("toy")
    builder.add_material("ArNe", crystal())

    def task(stage: str, structure: Structure) -> list[TaskInput]:
        return [TaskInput(TaskKey(*PAIR, stage), structure)]

    positions = RelaxSettings(mode="positions", fmax_eV_A=1e-6, max_steps=5000)
    (relaxed,) = relax(task("relax", crystal()), MODEL, engine(), positions)
    assert isinstance(relaxed, TaskResult), relaxed.traceback
    structure = Structure(*(relaxed.arrays[name].value for name in ("numbers", "positions", "cell")))
    (displaced,) = displace(task("displace", structure), MODEL, engine(), SUPERCELL, DisplaceSettings())
    (moved,) = dynamics(task("dynamics", structure), MODEL, engine(), SUPERCELL, DYNAMICS, seed=3)
    for outcome in (displaced, moved):
        assert isinstance(outcome, TaskResult), outcome.traceback
    builder.commit(relaxed, displaced, moved)
    return builder.path


def test_lattice_atoms_and_forces_are_those_of_the_documented_matrix(archive):
    with open_archive(archive) as view:
        relaxed = view.relaxed(*PAIR)
        constants = force_constants(view, *PAIR, 0.01)
        moved = view.read_array(*PAIR, "displace", "d0.0100/displacements")
        forces = view.read_array(*PAIR, "displace", "d0.0100/forces")
        trajectory = read_trajectory(view, *PAIR, 0)
    supercell = constants.supercell
    np.testing.assert_allclose(supercell.cell, ROWS @ relaxed.cell, atol=1e-10)
    np.testing.assert_array_equal(constants.supercell_matrix, ROWS.T)
    expected = ase_supercell(to_ase(relaxed), ROWS)
    nearest = [np.argmin(_distances(supercell, position)) for position in expected.positions]
    assert sorted(nearest) == list(range(len(expected)))
    expected.positions += moved[0][nearest]  # in ASE's own supercell, one atom after the other
    expected.calc = BatchCalculator(LennardJones())
    np.testing.assert_allclose(forces[0][nearest], expected.get_forces(), atol=1e-9)
    # Dynamics is in the same cell, about the same sites, and its forces are those of these atoms.
    np.testing.assert_allclose(trajectory.cell_A, ROWS @ relaxed.cell, atol=1e-10)
    assert np.abs(trajectory.positions_A - supercell.positions).max() < 0.3
    atoms = to_ase(Structure(supercell.numbers, trajectory.positions_A[-1], supercell.cell))
    atoms.calc = BatchCalculator(LennardJones())
    np.testing.assert_allclose(trajectory.forces_eV_A[-1], atoms.get_forces(), atol=1e-9)


def _distances(structure: Structure, position: np.ndarray) -> np.ndarray:
    fractional = (structure.positions - position) @ np.linalg.inv(structure.cell)
    return np.linalg.norm((fractional - np.rint(fractional)) @ structure.cell, axis=1)


def test_phonons_read_back_are_those_of_phonopy_alone(archive, tmp_path, monkeypatch):
    with open_archive(archive) as view:
        relaxed = view.relaxed(*PAIR)
        phonon = build_phonopy(force_constants(view, *PAIR, 0.01))
        trajectory = read_trajectory(view, *PAIR, 0)
    alone = _phonopy_alone(relaxed)
    modes = commensurate_modes(phonon)
    assert len(modes.qpoints) == round(np.linalg.det(ROWS))
    # The q points are those of the documented lattice: a whole number of waves along each of its vectors.
    waves = modes.qpoints @ np.linalg.inv(phonon.primitive.cell).T @ (ROWS @ relaxed.cell).T
    np.testing.assert_allclose(waves, np.rint(waves), atol=1e-8)
    np.testing.assert_allclose(alone.run_qpoints(modes.qpoints).frequencies, modes.frequencies_THz, atol=1e-5)

    export(archive, *PAIR, "phonopy", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    for constants in ("FORCE_CONSTANTS", None):
        loaded = phonopy.load("phonopy_params.yaml", force_constants_filename=constants, log_level=0)
        np.testing.assert_allclose(loaded.supercell.cell, ROWS @ relaxed.cell, atol=1e-9)
        np.testing.assert_allclose(loaded.run_qpoints(modes.qpoints).frequencies, modes.frequencies_THz, atol=1e-3)

    # At 1 K the crystal is harmonic: force constants and trajectory name their atoms alike.
    masses = phonon.supercell.masses
    u = displacements(trajectory.positions_A, phonon.supercell.positions, phonon.supercell.cell, masses)
    harmonic = harmonic_forces(u, full_force_constants(phonon))
    assert np.sqrt(np.mean((harmonic - trajectory.forces_eV_A) ** 2)) < 0.1 * trajectory.forces_eV_A.std()


def _phonopy_alone(relaxed: Structure) -> Phonopy:
    """As a user of phonopy computes it, one displaced cell after the other."""
    phonon = Phonopy(to_phonopy(relaxed), ROWS.T, primitive_matrix="auto")
    phonon.generate_displacements(distance=0.01)
    forces = []
    for cell in [phonon.supercell, *phonon.supercells_with_displacements]:
        atoms = ase.Atoms(numbers=cell.numbers, positions=cell.positions, cell=cell.cell, pbc=True)
        atoms.calc = BatchCalculator(LennardJones())
        forces.append(atoms.get_forces())
    phonon.forces = np.array(forces[1:]) - forces[0]
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    return phonon


def test_an_archive_with_the_other_meaning_is_exported_as_it_is(builder, tmp_path, monkeypatch):
    """Until the meaning was mended the nine numbers were columns; such an archive holds the lattice that it says."""
    builder.add_models("toy")
    builder.add_material("ArNe", crystal())
    (relaxed,) = relax([TaskInput(TaskKey(*PAIR, "relax"), crystal())], MODEL, engine(), RelaxSettings(mode="none"))
    columns = SupercellSettings(matrix=tuple(ROWS.T.ravel().tolist()))
    (displaced,) = displace(
        [TaskInput(TaskKey(*PAIR, "displace"), crystal())], MODEL, engine(), columns, DisplaceSettings()
    )
    builder.commit(relaxed, displaced)
    export(builder.path, *PAIR, "phonopy", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    loaded = phonopy.load("phonopy_params.yaml", force_constants_filename="FORCE_CONSTANTS", log_level=0)
    np.testing.assert_allclose(loaded.supercell.cell, ROWS.T @ crystal().cell, atol=1e-9)
