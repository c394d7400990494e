"""Materials per hour and core: a campaign against a script of ASE and phonopy that does the same (campaign_script.py).

python -m benchmarks.campaign [--models demo small] [--steps 600] [--json FILE]

The same compounds, stages and settings, each in one process on one core, one after the other, everything included from
the start of Python to the last file; what the fast evaluator prepares once per architecture is prepared before. With
longer trajectories (the default is 6000 steps) the ratio approaches that of a step, see benchmarks/engine.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from driver.archive.reader import open_archive
from driver.config import compose
from driver.download import hash_file
from driver.structures.convert import to_ase
from driver.structures.materials import load_materials

ROOT = Path(__file__).parents[1]
ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def structures(folder: Path, compounds: Sequence[str]) -> list[Path]:
    """Write the compounds as files and return their paths."""
    settings = compose([f"materials.formulas=[{','.join(compounds)}]", "campaign=smoke"])
    paths = []
    for record in load_materials(settings.materials, base_dir=folder, seed=0).records:
        paths.append(folder / f"{record.key}.cif")
        to_ase(record.structure).write(paths[-1])
    return paths


def script_s(model: Path, steps: int, files: Sequence[Path], folder: Path) -> float:
    """Run the script; return its time."""
    out = folder / f"script-{steps}"
    out.mkdir()
    command = [str(ROOT / "benchmarks" / "campaign_script.py"), str(model), str(steps), str(out), *map(str, files)]
    seconds = timed_s([sys.executable, "-W", "ignore", *command], folder)
    assert len(list(out.glob("*.traj"))) == len(files)
    return seconds


def campaign_s(model: Path, steps: int, files: Sequence[Path], folder: Path, evaluator: str) -> float:
    """Run a campaign; return its time."""
    overrides = [
        f"name={evaluator}-{steps}",
        f"runs={folder}",
        "materials=structures",
        f"materials.structures=[{','.join(map(str, files))}]",
        "model=file",
        f"models.file.path={model}",
        "models.file.key=benchmark",
        f"models.file.sha256={hash_file(model)}",
        "dynamics.equilibration_ps=0.0",
        f"dynamics.production_ps={2e-3 * steps:g}",
        "dynamics.segment_ps=0.1",
        f"engine.evaluator={evaluator}",
        "execution.device=cpu",
    ]
    seconds = timed_s([sys.executable, "-m", "driver", "run", *overrides], folder)
    with open_archive(folder / f"{evaluator}-{steps}" / "archive.h5") as view:
        rows = view.table("tasks")
        assert set(rows["status"]) == {"done"}
        assert set(rows["evaluator"][rows["stage"] == "dynamics"]) <= {evaluator, "symmetrix"}
    return seconds


def timed_s(command: Sequence[str], folder: Path) -> float:
    """Run a command on one core; return its time, or end with what it said."""
    environment = {**os.environ, **ONE_CORE, "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    run = subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode != 0:
        raise SystemExit(f"{' '.join(command[:5])} ...: {run.stderr[-2000:]}")
    return time.perf_counter() - began


def measure(model: str, compounds: Sequence[str], steps: int) -> dict[str, float]:
    """Return the materials per hour and core of all contenders with one model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for command in (["make", model, name], ["prepare", f"{name}/{model}.model", "float32"]):
            timed_s([sys.executable, "-W", "ignore", "-m", "benchmarks.engine_contenders", *command], ROOT)
        files, path = structures(folder, compounds), folder / f"{model}.model"
        seconds = {"ASE + phonopy script": script_s(path, steps, files, folder)}
        for evaluator in ("torch", "auto"):
            seconds[f"latdyn, {evaluator}"] = campaign_s(path, steps, files, folder, evaluator)
    return {name: 3600.0 * len(files) / taken for name, taken in seconds.items()}


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["demo", "small"])
    parser.add_argument("--compounds", nargs="+", default=["Cs2NaInCl6", "Cs2AgBiBr6"])
    parser.add_argument("--steps", type=int, default=600, help="of dynamics; a multiple of 50")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {}
    for model in options.models:
        rates = found[model] = measure(model, options.compounds, options.steps)
        print(f"\n{model}: {len(options.compounds)} materials, {options.steps} steps; materials per hour and core")
        for name, rate in rates.items():
            print(f"{name:<24}{rate:>9.1f}{rate / rates['ASE + phonopy script']:>8.2f}x", flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
