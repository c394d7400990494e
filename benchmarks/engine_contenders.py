"""The contenders of benchmarks/engine.py: each runs whole time steps of Langevin dynamics, in a process of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

TEMPERATURE_K, TIMESTEP_FS, FRICTION_PER_PS = 300.0, 2.0, 10.0
FORMULA = {"demo": ("Cs", "Na", "In", "Cl")}
SIZES = {10: ((1, 1, 1), True), 40: ((1, 1, 1), False), 80: ((2, 2, 2), True), 320: ((2, 2, 2), False)}
"""Atoms -> repetitions, and of the primitive (10 atoms) or the cubic cell (40 atoms)."""

Steps = Callable[[int], None]
"""Runs so many time steps."""


def crystal_of(model: str, atoms: int) -> Any:
    """Return an ASE supercell of a double perovskite with `atoms` atoms."""
    from ase.spacegroup import crystal

    symbols = FORMULA.get(model, ("Cs", "Ag", "Bi", "Br"))
    repetitions, primitive = SIZES[atoms]
    a = 10.5 if model == "demo" else 11.2
    sites = [(0.25, 0.25, 0.25), (0, 0, 0), (0.5, 0.5, 0.5), (0.25, 0, 0)]
    cell = crystal(symbols, sites, spacegroup=225, cellpar=[a, a, a, 90, 90, 90], primitive_cell=primitive)
    return cell.repeat(repetitions)


def make_model(name: str, folder: Path) -> None:
    """Write a model of the size of a foundation model, with random weights and 89 elements, or copy the demo model."""
    root = Path(__file__).parents[1]
    target = folder / f"{name}.model"
    if name == "demo":
        target.write_bytes((root / "models" / "demo" / "demo.model").read_bytes())
        return
    sys.path.insert(0, str(root / "tests" / "helpers"))
    import torch
    from model_zoo import ALL_ELEMENTS, build_model

    architecture, irreps = {
        "small": ("mp-0", "128x0e"),
        "medium": ("mp-0", "128x0e+128x1o"),
        "mpa": ("mpa-0", "128x0e+128x1o"),
    }[name]
    model = build_model(architecture, elements=ALL_ELEMENTS, hidden_irreps=irreps, r_max_A=6.0, dtype=torch.float32)
    # Forces of a few meV/A, so that the crystal stays a crystal and every contender has as many neighbours.
    model.scale_shift.scale *= 1e-3
    torch.save(model, target)


def prepare_model(path: Path, dtype: str) -> None:
    """Extract and compile what symmetrix-xl needs."""
    from driver.engine.load import load_model
    from driver.engine.preparation import prepare
    from driver.models import prepared_folder

    file = model_file(path)
    prepare(load_model(file), file, dtype, prepared_folder(), 1)


def model_file(path: Path) -> Any:
    """Return the model as Latdyn knows it."""
    from driver.models import ModelFile

    return ModelFile("benchmark", path, hashlib.sha256(path.read_bytes()).hexdigest())


def mace_calculator(path: Path, dtype: str) -> Any:
    """Return mace-torch's ASE calculator."""
    from mace.calculators import MACECalculator

    return MACECalculator(model_paths=str(path), device="cpu", default_dtype=dtype)


def native_calculator(path: Path, dtype: str) -> Any:
    """Return symmetrix-xl's ASE calculator as it comes, of the model as Latdyn has prepared it."""
    from driver.engine.load import load_model
    from driver.engine.preparation import code_folder, extracted_model
    from driver.models import prepared_folder

    # In another process, so that this one keeps the library's own settings.
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.engine_contenders", "prepare", str(path), dtype]
    subprocess.run(command, check=True, capture_output=True)
    file = model_file(path)
    extracted = extracted_model(load_model(file), file, prepared_folder())
    os.environ["SYMMETRIX_JIT_CACHE"] = str(code_folder(prepared_folder()))
    from symmetrix import Symmetrix

    return Symmetrix(str(extracted), dtype=dtype)


def latdyn(path: Path, atoms: Any, dtype: str, evaluator: str) -> Steps:
    """The stage dynamics, as a campaign runs it: one segment per turn, frames, checks and set-up included."""
    import threadpoolctl

    from driver.archive.records import TaskKey, TaskResult
    from driver.engine.engine import Engine
    from driver.settings import DynamicsSettings, EngineSettings, SupercellSettings
    from driver.stages.dynamics import dynamics
    from driver.structures.convert import from_ase
    from driver.tasks import TaskInput

    threadpoolctl.threadpool_limits(1, user_api="blas")
    engine = Engine("cpu", 1, EngineSettings(evaluator=evaluator))
    model = model_file(path)
    structure, cell = from_ase(atoms), SupercellSettings((1, 1, 1))
    turns = iter(range(10**6))

    def steps(n: int) -> None:
        length = n * TIMESTEP_FS * 1e-3
        interval = 10.0 if n % 5 == 0 else TIMESTEP_FS  # a frame every 10 fs, as usual, or more often
        settings = DynamicsSettings(
            dtype=dtype, equilibration_ps=0.0, production_ps=length, segment_ps=length, frame_interval_fs=interval
        )
        task = TaskInput(TaskKey("crystal", "benchmark", "dynamics", 0), structure, None)
        (result,) = dynamics([task], model, engine, cell, settings, seed=next(turns))
        assert isinstance(result, TaskResult), result
        assert result.evaluator == evaluator

    return steps


def _ase_langevin(atoms: Any) -> Steps:
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE_K)
    friction = FRICTION_PER_PS / (1000.0 * units.fs)
    return Langevin(atoms, TIMESTEP_FS * units.fs, temperature_K=TEMPERATURE_K, friction=friction).run


def ase_mace(path: Path, atoms: Any, dtype: str) -> Steps:
    """ASE's Langevin with mace-torch's calculator."""
    atoms.calc = mace_calculator(path, dtype)
    return _ase_langevin(atoms)


def ase_symmetrix(path: Path, atoms: Any, dtype: str) -> Steps:
    """ASE's Langevin with symmetrix-xl's calculator."""
    atoms.calc = native_calculator(path, dtype)
    return _ase_langevin(atoms)


def torch_sim(path: Path, atoms: Any, dtype: str) -> Steps:
    """torch-sim with mace-torch; without the stress, which its Langevin does not need."""
    import torch
    import torch_sim as ts
    from torch_sim.models.mace import MaceModel

    kind = getattr(torch, dtype)
    device = torch.device("cpu")
    model = MaceModel(model=torch.load(path, weights_only=False), device=device, dtype=kind, compute_stress=False)
    state = ts.io.atoms_to_state([atoms], device, kind)
    kT = torch.tensor(TEMPERATURE_K * float(ts.units.MetalUnits.temperature), dtype=kind)
    dt = torch.tensor(TIMESTEP_FS * 1e-3 * float(ts.units.MetalUnits.time), dtype=kind)
    gamma = torch.tensor(FRICTION_PER_PS / float(ts.units.MetalUnits.time), dtype=kind)
    start, step = ts.nvt_langevin(model, dt=dt, kT=kT, gamma=gamma)
    held = [start(state)]

    def steps(n: int) -> None:
        for _ in range(n):
            held[0] = step(held[0])

    return steps


def janus(path: Path, atoms: Any, dtype: str) -> Steps:
    """janus-core's NVT (ASE's Langevin within), with the frame and statistics intervals of the others' frames."""
    from janus_core.calculations.md import NVT

    md = NVT(
        struct=atoms,
        arch="mace",
        device="cpu",
        model=str(path),
        calc_kwargs={"default_dtype": dtype},
        temp=TEMPERATURE_K,
        timestep=TIMESTEP_FS,
        friction=FRICTION_PER_PS * 1e-3,
        steps=2,
        stats_every=5,
        traj_every=5,
        restart_every=10**6,
        file_prefix=f"janus-{os.getpid()}",
        track_carbon=False,
        enable_progress_bar=False,
    )

    md.run()  # attaches what writes statistics and frames; running it again would attach them twice
    run: Steps = md.dyn.run
    return run


CONTENDERS: dict[str, Callable[[Path, Any, str], Steps]] = {
    "latdyn-torch": partial(latdyn, evaluator="torch"),
    "latdyn-symmetrix": partial(latdyn, evaluator="symmetrix"),
    "ase-mace": ase_mace,
    "ase-symmetrix": ase_symmetrix,
    "torch-sim": torch_sim,
    "janus": janus,
}


def as_processes(
    contenders: Mapping[str, Callable[[Path, Any, str], Steps]],
    crystal: Callable[[str, int], Any],
    arguments: Sequence[str],
) -> None:
    """Be a contender: answer each number of steps on standard input with the seconds they took."""
    contender, path, atoms, dtype, _ = arguments
    import torch

    torch.set_num_threads(1)
    steps = contenders[contender](Path(path), crystal(Path(path).stem, int(atoms)), dtype)
    steps(1)
    print("seconds 0.0", flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        steps(int(line))
        print(f"seconds {time.perf_counter() - began}", flush=True)


def main() -> None:
    """Make or prepare a model, or be a contender."""
    if sys.argv[1] == "make":
        make_model(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1] == "prepare":
        prepare_model(Path(sys.argv[2]), sys.argv[3])
    else:
        as_processes(CONTENDERS, crystal_of, sys.argv[1:])


if __name__ == "__main__":
    main()
