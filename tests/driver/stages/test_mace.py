"""The stages with the real engine and archive, against mace-torch's own ASE calculator and phonopy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import phonopy
import pytest
from ase.build import bulk
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from mace.calculators import MACECalculator
from model_zoo import build_model, save_model
from phonopy import Phonopy

from driver.archive.h5md import last_state, read_trajectory, replicas
from driver.archive.reader import open_archive
from driver.archive.records import Attempt, Header, MaterialRecord, ModelRecord, Structure, TaskKey, TaskResult
from driver.archive.writer import ArchiveWriter
from driver.engine.engine import Engine
from driver.settings import DisplaceSettings, DynamicsSettings, EngineSettings, RelaxSettings, SupercellSettings
from driver.stages.displace import displace
from driver.stages.dynamics import dynamics
from driver.stages.relax import relax
from driver.structures.convert import from_ase, to_ase, to_phonopy
from driver.tasks import TaskInput

SUPERCELL = SupercellSettings(matrix=(2, 2, 2))
DYNAMICS = DynamicsSettings(
    temperature_K=50.0,
    timestep_fs=1.0,
    equilibration_ps=0.0,
    production_ps=0.04,
    segment_ps=0.02,
    frame_interval_fs=5.0,
    replicas=2,
    dtype="float64",
    frame_dtype="float64",
    max_temperature_factor=100.0,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model with a repulsive core: it has minima to relax into."""
    return save_model(build_model("mp-0b", seed=4), tmp_path_factory.mktemp("model") / "zoo.model")


@pytest.fixture(scope="module")
def calculator(model):
    return MACECalculator(model_paths=str(model.path), device="cpu", default_dtype="float64")


@pytest.fixture(scope="module")
def engine():
    return Engine("cpu", settings=EngineSettings(evaluator="torch"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Settings with a folder for prepared models that lasts for the module."""
    return EngineSettings(cache=str(tmp_path_factory.mktemp("prepared")))


def salt(a=4.35):
    return bulk("NaCl", "rocksalt", a=a)


@pytest.fixture(scope="module")
def relaxed(model, engine):
    (result,) = relax(
        [TaskInput(TaskKey("NaCl", "zoo", "relax"), from_ase(salt()))], model, engine, RelaxSettings(max_steps=2000)
    )
    assert isinstance(result, TaskResult), result.traceback
    return result


@pytest.fixture(scope="module")
def structure(relaxed):
    return Structure(*(relaxed.arrays[name].value for name in ("numbers", "positions", "cell")))


def test_relaxation_ends_where_ase_alone_ends(relaxed, calculator):
    atoms = salt()
    atoms.calc = calculator
    atoms.set_constraint(FixSymmetry(atoms))
    assert FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=2000)
    np.testing.assert_allclose(relaxed.arrays["cell"].value, atoms.cell.array, atol=1e-6)
    assert relaxed.scalars["energy_eV"] == pytest.approx(atoms.get_potential_energy(), abs=1e-8)
    assert relaxed.scalars["a_A"] != pytest.approx(salt().cell.cellpar()[0], abs=1e-2)


@pytest.mark.parametrize(("evaluator", "atol_THz"), [("torch", 1e-5), ("symmetrix", 1e-3)])
def test_frequencies_are_those_of_phonopy_with_mace_torchs_calculator(
    structure, model, calculator, tmp_path, prepared, evaluator, atol_THz
):
    engine = Engine("cpu", settings=replace(prepared, displace_evaluator=evaluator))
    (result,) = displace(
        [TaskInput(TaskKey("NaCl", "zoo", "displace"), structure)], model, engine, SUPERCELL, DisplaceSettings()
    )
    assert result.evaluator == evaluator
    assert result.attributes["evaluator"] == {"name": evaluator, "reason": "asked for by engine.displace_evaluator"}
    phonon = Phonopy(to_phonopy(structure), np.diag([2, 2, 2]), primitive_matrix="auto")
    phonon.generate_displacements(distance=0.01)
    forces = []
    for cell in phonon.supercells_with_displacements:
        atoms = to_ase(Structure(cell.numbers, cell.positions, cell.cell))
        atoms.calc = calculator
        forces.append(atoms.get_forces())
    phonon.forces = forces
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    (tmp_path / "phonopy_params.yaml").write_text(result.arrays["d0.0100/phonopy_yaml"].value)
    loaded = phonopy.load(tmp_path / "phonopy_params.yaml", log_level=0)
    for q in ([0, 0, 0], [0.5, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0.5]):
        ours, theirs = (np.sign(w) * w**2 for w in (loaded.get_frequencies(q), phonon.get_frequencies(q)))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol_THz)  # squares: a root would blow up zero
    assert np.abs(phonon.get_frequencies([0.5, 0, 0])).max() > 1.0


def test_two_segments_through_the_archive(structure, model, engine, calculator, tmp_path):
    path = tmp_path / "archive.h5"
    record = MaterialRecord("NaCl", "NaCl", structure, "test")
    with ArchiveWriter.create(path, Header("test", 1, "", {}, {})) as writer:
        writer.add_materials([record])
        writer.add_models([ModelRecord("zoo", model.path.name, model.sha256)])
        states = None
        for segment in range(2):
            task = TaskInput(TaskKey("NaCl", "zoo", "dynamics", segment), structure, states)
            (result,) = dynamics([task], model, engine, SUPERCELL, DYNAMICS, seed=4)
            assert isinstance(result, TaskResult), result.traceback
            writer.commit([Attempt(result, 1, 1.0, 0, "host", "cpu")])
            states = tuple(last_state(writer.view, "NaCl", "zoo", r, segment) for r in range(2))
            assert [s.step for s in states] == [20 * (segment + 1)] * 2
    with open_archive(path) as view:
        assert replicas(view, "NaCl", "zoo") == 2
        np.testing.assert_array_equal(view.table("dynamics")["last_step"], [20, 40])
        trajectory = read_trajectory(view, "NaCl", "zoo", 1)
    np.testing.assert_array_equal(trajectory.time_fs, np.arange(5.0, 41.0, 5.0))
    for frame in (0, -1):
        atoms = to_ase(Structure(trajectory.numbers, trajectory.positions_A[frame], trajectory.cell_A))
        atoms.calc = calculator
        np.testing.assert_allclose(trajectory.forces_eV_A[frame], atoms.get_forces(), atol=1e-9)
        assert trajectory.potential_energy_eV[frame] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


def test_the_archive_says_which_evaluator_ran_and_why(structure, model, tmp_path, prepared):
    """The fast one, the same one refused for its inaccuracy, and the reference."""
    strict = {"force_tolerance_eV_A": 1e-12, "force_tolerance_relative": 1e-12}
    names, reasons, ends = [], [], []
    for settings in (
        prepared,
        replace(prepared, **strict),
        EngineSettings(evaluator="torch"),
    ):
        path = tmp_path / f"{len(names)}.h5"
        with ArchiveWriter.create(path, Header("test", 1, "", {}, {})) as writer:
            writer.add_materials([MaterialRecord("NaCl", "NaCl", structure, "test")])
            writer.add_models([ModelRecord("zoo", model.path.name, model.sha256)])
            task = TaskInput(TaskKey("NaCl", "zoo", "dynamics", 0), structure)
            engine = Engine("cpu", settings=settings)
            (result,) = dynamics([task], model, engine, SUPERCELL, DYNAMICS, seed=4)
            assert isinstance(result, TaskResult), result.traceback
            writer.commit([Attempt(result, 1, 1.0, 0, "host", "cpu")])
        with open_archive(path) as view:
            chosen = dict(view.group("NaCl", "zoo", "dynamics")["evaluator"].attrs)
            assert list(view.table("tasks")["evaluator"]) == [chosen["name"]]
            names.append(chosen["name"])
            reasons.append(chosen["reason"])
            ends.append(last_state(view, "NaCl", "zoo", 0, 0).positions_A)
    assert names == ["symmetrix", "torch", "torch"]
    assert reasons[0].endswith("from the reference")
    assert reasons[1].startswith("symmetrix differs too much")
    assert reasons[2] == "asked for by engine.evaluator"
    np.testing.assert_allclose(ends[0], ends[2], atol=1e-5)  # 20 steps from the same start
    assert np.abs(ends[0] - ends[2]).max() > 0  # they were two
    np.testing.assert_array_equal(ends[1], ends[2])


def test_batch_mates_change_nothing_but_rounding_with_the_fast_evaluator(structure, model, prepared):
    """And alone, on one thread, a trajectory is the same bit for bit."""
    engine = Engine("cpu", 1, replace(prepared, evaluator="symmetrix"))
    larger = Structure(structure.numbers, structure.positions * 1.02, structure.cell * 1.02)
    mates = [TaskInput(TaskKey(name, "zoo", "dynamics"), cell) for name, cell in (("NaCl", structure), ("M", larger))]
    alone, again = (next(dynamics(mates[:1], model, engine, SUPERCELL, DYNAMICS, seed=4)) for _ in range(2))
    beside = next(r for r in dynamics(mates[::-1], model, engine, SUPERCELL, DYNAMICS, seed=4) if r.key == alone.key)
    assert {r.evaluator for r in (alone, again, beside)} == {"symmetrix"}
    path = "replica_1/state/position"
    np.testing.assert_array_equal(again.arrays[path].value, alone.arrays[path].value)
    np.testing.assert_allclose(beside.arrays[path].value, alone.arrays[path].value, rtol=0, atol=1e-10)


def test_float32_dynamics_follows_float64_at_first(structure, model, engine):
    task = TaskInput(TaskKey("NaCl", "zoo", "dynamics"), structure)
    double, single = (
        next(dynamics([task], model, engine, SUPERCELL, replace(DYNAMICS, dtype=dtype), seed=4))
        for dtype in ("float64", "float32")
    )
    path = "replica_0/particles/all/position/value"
    np.testing.assert_allclose(single.arrays[path].value, double.arrays[path].value, rtol=0, atol=1e-5)
    assert single.dtype == "float32"
    assert single.arrays["replica_0/state/position"].value.dtype == np.float64
