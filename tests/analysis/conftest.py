"""Crystals whose force constants are known (springs between neighbours of an elpasolite), and archives made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from ase import units
from ase.data import atomic_masses, atomic_numbers
from phonopy import Phonopy

from analysis.harmonic import ForceConstants
from analysis.validity import EV_PER_U_A2_FS2
from driver.archive.h5md import State, Trajectory, trajectory_arrays
from driver.archive.records import (
    Array,
    Attempt,
    Header,
    MaterialRecord,
    ModelRecord,
    Structure,
    TaskFailure,
    TaskKey,
    TaskResult,
)
from driver.archive.writer import ArchiveWriter
from driver.structures.convert import from_phonopy, to_phonopy

Floats = npt.NDArray[np.float64]


def elpasolite(elements: tuple[str, str, str, str], a_A: float = 11.2, x: float = 0.25) -> Structure:
    """A2MM'X6 in its primitive cell, atoms in the order A A M M' X X X X X X."""
    cell = a_A * np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    sites = [[0.25] * 3, [0.75] * 3, [0.0] * 3, [0.5] * 3]
    sites += [[x, 0, 0], [-x, 0, 0], [0, x, 0], [0, -x, 0], [0, 0, x], [0, 0, -x]]
    a, m, m_prime, halide = (atomic_numbers[element] for element in elements)
    numbers = np.array([a, a, m, m_prime] + 6 * [halide], dtype=np.int64)
    return Structure(numbers, a_A * np.array(sites), cell)


@dataclass(frozen=True)
class Springs:
    """A harmonic crystal in a supercell; `matrix` is its full (3N, 3N) force-constant matrix in eV angstrom-2."""

    constants: ForceConstants
    matrix: Floats

    def sample(self, temperature_K: float, frames: int, seed: int = 0) -> Floats:
        """Displacements (T, N, 3) drawn from the classical canonical distribution; modes at or below 0 stay at rest."""
        mass = np.repeat(self.constants.masses_u, 3)
        eigenvalues, vectors = np.linalg.eigh(self.matrix / np.sqrt(np.outer(mass, mass)))
        moving = eigenvalues > 1e-8
        amplitude = np.zeros(len(mass))
        amplitude[moving] = np.sqrt(units.kB * temperature_K / eigenvalues[moving])
        noise = np.random.default_rng(seed).standard_normal((frames, len(mass)))
        return ((noise * amplitude) @ vectors.T / np.sqrt(mass)).reshape(frames, -1, 3)


def springs(unitcell: Structure, *, size: int = 2, transverse_eV_A2: float = 0.05, reach_A: float = 4.2) -> Springs:
    """Longitudinal springs that stiffen with proximity plus a transverse part, which destabilises where negative."""
    supercell_matrix = size * np.eye(3, dtype=np.int64)
    phonon = Phonopy(to_phonopy(unitcell), supercell_matrix, primitive_matrix=np.eye(3))
    supercell = from_phonopy(phonon.supercell)
    blocks = _spring_blocks(supercell, transverse_eV_A2, reach_A)
    atoms = len(supercell)
    constants = ForceConstants(
        unitcell=unitcell,
        supercell=supercell,
        masses_u=atomic_masses[supercell.numbers],
        supercell_matrix=supercell_matrix,
        primitive_matrix=np.eye(3),
        values=blocks[phonon.primitive.p2s_map],
    )
    return Springs(constants, blocks.transpose(0, 2, 1, 3).reshape(3 * atoms, 3 * atoms))


def _spring_blocks(supercell: Structure, transverse_eV_A2: float, reach_A: float) -> Floats:
    atoms = len(supercell)
    vectors = supercell.positions[None] - supercell.positions[:, None]
    fractional = vectors @ np.linalg.inv(supercell.cell)
    vectors = (fractional - np.rint(fractional)) @ supercell.cell
    distance = np.linalg.norm(vectors, axis=-1) + np.eye(atoms)
    near = (distance < reach_A) & ~np.eye(atoms, dtype=bool)
    direction = vectors / distance[..., None]
    outer = direction[..., :, None] * direction[..., None, :]
    stiffness = 3.0 * np.exp(-(distance - 2.8) / 0.6)
    blocks = -near.astype(float)[..., None, None] * (stiffness[..., None, None] * outer + transverse_eV_A2 * np.eye(3))
    blocks[np.arange(atoms), np.arange(atoms)] = -blocks.sum(axis=1)
    return np.asarray(blocks)


def relax_result(key: TaskKey, structure: Structure) -> TaskResult:
    """A relaxation that found the structure relaxed already."""
    lengths = np.linalg.norm(structure.cell, axis=1)
    scalars = {
        "energy_eV": -31.0,
        "energy_per_atom_eV": -31.0 / len(structure),
        "volume_A3": structure.volume,
        **dict(zip(("a_A", "b_A", "c_A"), lengths.tolist(), strict=True)),
        **dict.fromkeys(("alpha_deg", "beta_deg", "gamma_deg"), 60.0),
        "max_force_eV_A": 1e-5,
        "max_stress_eV_A3": 1e-6,
        "steps": 12,
        "converged": True,
        "space_group_initial": 225,
        "space_group_final": 225,
    }
    arrays = {
        "numbers": Array(structure.numbers),
        "positions": Array(structure.positions, "angstrom"),
        "cell": Array(structure.cell, "angstrom"),
        "forces": Array(np.zeros((len(structure), 3)), "eV angstrom-1"),
        "stress": Array(1e-6 * np.eye(3), "eV angstrom-3"),
    }
    return TaskResult(key, scalars, arrays, evaluator="torch", dtype="float64")


def displace_result(key: TaskKey, crystal: Springs, distance_A: float = 0.01) -> TaskResult:
    """Displacement forces of a crystal of springs, laid out as the stage lays them out."""
    constants = crystal.constants
    phonon = Phonopy(to_phonopy(constants.unitcell), constants.supercell_matrix, primitive_matrix=np.eye(3))
    phonon.generate_displacements(distance=distance_A)
    cells = phonon.supercells_with_displacements
    moved = np.stack([cell.positions - constants.supercell.positions for cell in cells])
    forces = -(moved.reshape(len(moved), -1) @ crystal.matrix.T).reshape(moved.shape)
    phonon.forces = forces
    group = f"d{distance_A:.4f}"
    supercell = constants.supercell
    arrays = {
        "supercell/numbers": Array(supercell.numbers),
        "supercell/positions": Array(supercell.positions, "angstrom"),
        "supercell/cell": Array(supercell.cell, "angstrom"),
        "supercell/masses": Array(constants.masses_u, "u"),
        "supercell_matrix": Array(constants.supercell_matrix),
        "primitive_matrix": Array(constants.primitive_matrix),
        "residual_forces": Array(np.zeros_like(supercell.positions), "eV angstrom-1"),
        f"{group}/displacements": Array(moved, "angstrom"),
        f"{group}/forces": Array(forces, "eV angstrom-1"),
        f"{group}/energies": Array(np.zeros(len(moved)), "eV"),
        f"{group}/force_constants": Array(constants.values, "eV angstrom-2"),
        f"{group}/p2s_map": Array(np.array(phonon.primitive.p2s_map)),
        f"{group}/s2p_map": Array(np.array(phonon.primitive.s2p_map)),
        f"{group}/phonopy_yaml": Array(str(phonon.to_phonopy_yaml(settings={"force_constants": False}))),
    }
    scalars = {
        "atoms": len(supercell),
        "displacements": len(moved),
        "max_residual_force_eV_A": 0.0,
        "max_drift_force_eV_A": 0.0,
        "fc_asymmetry_eV_A2": 1e-9,
    }
    return TaskResult(key, scalars, arrays, evaluator="torch", dtype="float64")


def dynamics_result(
    key: TaskKey, crystal: Springs, *, quartic_eV_A4: float = 0.0, temperature_K: float = 300.0, replicas: int = 1
) -> TaskResult:
    """One picosecond in 100 frames: displacements drawn canonically, forces of the springs plus -g u^3 on each atom.

    Not a trajectory that any dynamics would give (the draws ignore g), but one whose sigma is known by evaluation.
    """
    arrays, attributes, links = {}, {}, {}
    for replica in range(replicas):
        frames = _frames(key, crystal, quartic_eV_A4, temperature_K, replica)
        state = State(frames.positions_A[-1], frames.velocities_A_fs[-1], int(frames.step[-1]))
        parts = trajectory_arrays(replica, frames, state, frame_dtype="float64")
        arrays, attributes, links = arrays | parts[0], attributes | parts[1], links | parts[2]
    scalars = {
        "replicas": replicas,
        "frames": 100,
        "temperature_K": temperature_K,
        "temperature_std_K": 20.0,
        "potential_energy_eV": -248.0,
        "energy_drift_meV_atom_ps": 0.0,
        "first_step": int(500 * key.segment + 5),
        "last_step": int(500 * key.segment + 500),
    }
    return TaskResult(key, scalars, arrays, attributes, links, "torch", "float32")


def _frames(key: TaskKey, crystal: Springs, quartic: float, temperature_K: float, replica: int) -> Trajectory:
    supercell, masses = crystal.constants.supercell, crystal.constants.masses_u
    seed = 1000 * key.segment + replica
    u = crystal.sample(temperature_K, 100, seed)
    forces = -(u.reshape(100, -1) @ crystal.matrix.T).reshape(u.shape) - quartic * u**3
    speed = np.sqrt(units.kB * temperature_K / (masses * EV_PER_U_A2_FS2))[:, None]
    velocities = speed * np.random.default_rng(seed + 77).standard_normal(u.shape)
    velocities -= np.einsum("tni,n->ti", velocities, masses / masses.sum())[:, None]
    step = 500 * key.segment + 5 * np.arange(1, 101)
    return Trajectory(
        numbers=supercell.numbers,
        masses_u=masses,
        cell_A=supercell.cell,
        positions_A=supercell.positions + u,
        velocities_A_fs=velocities,
        forces_eV_A=forces,
        step=step,
        time_fs=2.0 * step,
        potential_energy_eV=np.full(100, -248.0),
        kinetic_energy_eV=0.5 * EV_PER_U_A2_FS2 * (masses[:, None] * velocities**2).sum(axis=(1, 2)),
    )


CONFIGURATION = """
name: toy
seed: 7
stages: [relax, displace, dynamics]
displace: {distances_A: [0.01], sigma_distance_A: 0.01, bands_distance_A: 0.01, symprec_A: 1.0e-05}
dynamics: {ensemble: langevin, temperature_K: 300.0, timestep_fs: 2.0, equilibration_ps: 1.0, production_ps: 2.0,
  segment_ps: 1.0}
"""


@dataclass
class ArchiveBuilder:
    """Writes small archives with results that are known beforehand."""

    path: Path
    configuration: str = CONFIGURATION

    def __post_init__(self) -> None:
        header = Header("toy", 7, self.configuration, {"dynamics.temperature_K": "300.0"}, {"latdyn": "0.1.0"})
        ArchiveWriter.create(self.path, header).close()

    def add_models(self, *keys: str) -> None:
        """Register models; their files are not needed."""
        with ArchiveWriter.open(self.path) as writer:
            writer.add_models(
                [ModelRecord(key, f"{key}.model", hashlib.sha256(key.encode()).hexdigest()) for key in keys]
            )

    def add_material(self, key: str, structure: Structure, prototype: str = "elpasolite", formula: str = "") -> None:
        """Register a material."""
        record = MaterialRecord(key, formula or key, structure, "test", prototype, {"tolerance_factor": 0.95})
        with ArchiveWriter.open(self.path) as writer:
            writer.add_materials([record])

    def commit(self, *outcomes: TaskResult | TaskFailure, quarantined: bool = True) -> None:
        """Commit outcomes, failures as given up unless told otherwise."""
        attempts = [
            Attempt(outcome, 1, 2.5, 1, "node1", "cpu", quarantined and isinstance(outcome, TaskFailure))
            for outcome in outcomes
        ]
        with ArchiveWriter.open(self.path) as writer:
            writer.commit(attempts)

    def add_all(
        self, material: str, model: str, crystal: Springs, *, segments: int = 3, replicas: int = 1, quartic: float = 0.0
    ) -> None:
        """Commit every stage of a material with a model, with 1 ps segments."""
        self.commit(
            relax_result(TaskKey(material, model, "relax"), crystal.constants.unitcell),
            displace_result(TaskKey(material, model, "displace"), crystal),
            *(
                dynamics_result(
                    TaskKey(material, model, "dynamics", segment), crystal, quartic_eV_A4=quartic, replicas=replicas
                )
                for segment in range(segments)
            ),
        )

    def fail(self, material: str, model: str, stage: str, message: str, segment: int = 0) -> None:
        """Commit a task that was given up."""
        trace = f'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\nTaskError: {message}\n'
        self.commit(TaskFailure(TaskKey(material, model, stage, segment), "TaskError", message, trace, True))


@pytest.fixture
def builder(tmp_path: Path) -> ArchiveBuilder:
    """An archive without materials and models."""
    return ArchiveBuilder(tmp_path / "archive.h5")


@pytest.fixture(scope="session")
def toy_archive(tmp_path_factory: pytest.TempPathFactory, stable_crystal: Springs, unstable_crystal: Springs) -> Path:
    """Two models; a harmonic crystal, an anharmonic one, an unstable one, a failed one, an unfinished one."""
    made = ArchiveBuilder(tmp_path_factory.mktemp("toy") / "archive.h5")
    made.add_models("model-a", "model-b")
    crystals = {
        "Cs2AgBiBr6": (stable_crystal, 0.0, 3),
        "Cs2NaBiCl6": (unstable_crystal, 60.0, 3),
        "Cs2NaInCl6": (stable_crystal, 60.0, 2),
    }
    for key, (crystal, _, _) in crystals.items():
        made.add_material(key, crystal.constants.unitcell)
    made.add_material("Rb2AgInCl6", stable_crystal.constants.unitcell)
    for model in ("model-a", "model-b"):
        for key, (crystal, quartic, segments) in crystals.items():
            factor = 1.0 if model == "model-a" else 1.2
            made.add_all(key, model, crystal, segments=segments, quartic=factor * quartic, replicas=2)
        made.fail("Rb2AgInCl6", model, "relax", f"{model} does not know Rb <element>")
    return made.path


@pytest.fixture(scope="session")
def stable_crystal() -> Springs:
    """Cs2AgBiBr6 on springs: 80 atoms, no imaginary mode."""
    return springs(elpasolite(("Cs", "Ag", "Bi", "Br")))


@pytest.fixture(scope="session")
def unstable_crystal() -> Springs:
    """The same with repulsive transverse springs: imaginary modes."""
    return springs(elpasolite(("Cs", "Na", "Bi", "Cl")), transverse_eV_A2=-0.08)


@pytest.fixture(scope="session")
def make_elpasolite() -> Callable[..., Structure]:
    """The function that builds an elpasolite's primitive cell."""
    return elpasolite


@pytest.fixture(scope="session")
def make_springs() -> Callable[..., Springs]:
    """The function that puts a crystal on springs."""
    return springs


@pytest.fixture(scope="session")
def make_dynamics() -> Callable[..., TaskResult]:
    """The function that makes up a segment of a trajectory."""
    return dynamics_result
