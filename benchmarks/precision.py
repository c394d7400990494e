"""Why the defaults are what they are: precision of dynamics and of displacement forces, displacement, time step.

python -m benchmarks.precision [--material Cs2NaInCl6] [--production-ps 7.68] [--docs]

Three studies with the bundled model: sigma from dynamics in float32 and in float64; phonons from displacements of
0.003 to 0.03 A in both precisions and with both evaluators; sigma and the total energy's drift and fluctuation for time
steps of 1 to 8 fs. `--docs` writes docs/precision.png and the tables of docs/precision.md. An hour on one core.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.harmonic import Modes, build_phonopy, commensurate_modes
from analysis.inputs import force_constants
from analysis.reduce import reduce_archive
from benchmarks.accuracy import run_campaign
from driver.archive.h5md import read_trajectory
from driver.archive.reader import open_archive

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- figures of benchmarks/precision.py -->", "<!-- end of figures -->"
FRAME_FS = 24.0
"""A multiple of all time steps."""
SEGMENT_PS = 0.96
TIME_STEPS_FS = (1.0, 2.0, 4.0, 6.0, 8.0)
DISTANCES_A = (0.003, 0.005, 0.01, 0.02, 0.03)
FORCES = (("torch", "float64"), ("symmetrix", "float64"), ("torch", "float32"))
"""Evaluator and precision of displacement forces."""
REFERENCE = FORCES[0]


@dataclass(frozen=True)
class Dynamics:
    """What a trajectory gives: sigma, its error of one standard deviation, and the mean temperature."""

    sigma: float
    error: float
    temperature_K: float


@dataclass(frozen=True)
class Energy:
    """How NVE conserves the total energy: slope, and standard deviation about it."""

    drift_meV_atom_ps: float
    fluctuation_meV_atom: float


@dataclass(frozen=True)
class Scan:
    """Phonons from one set of displacements: the lowest vibration, and the largest differences of a frequency.

    `bias_THz` is against torch in float64 at 0.01 A, `noise_THz` against the same at the same displacement.
    """

    lowest_THz: float
    bias_THz: float
    noise_THz: float


def dynamics_of(folder: Path, material: str, name: str, production_ps: float, *overrides: str) -> Dynamics:
    """Run Langevin dynamics and reduce it."""
    archive = run_campaign(folder, [material], *_lengths(name, production_ps), *overrides)
    row = reduce_archive(archive).table.iloc[0]
    return Dynamics(float(row["sigma_pooled"]), float(row["sigma_pooled_error"]), float(row["temperature_K"]))


def energy_of(folder: Path, material: str, timestep_fs: float, production_ps: float) -> Energy:
    """Run NVE and look at the total energy after equilibration."""
    archive = run_campaign(
        folder,
        [material],
        *_lengths(f"nve-{timestep_fs:g}", production_ps),
        "dynamics.ensemble=nve",
        f"dynamics.timestep_fs={timestep_fs}",
        "stages=[relax,dynamics]",
    )
    with open_archive(archive) as view:
        trajectory = read_trajectory(view, material, "demo", 0)
    late = trajectory.time_fs > 1e3 * SEGMENT_PS
    time_ps = 1e-3 * trajectory.time_fs[late]
    total = 1e3 * (trajectory.potential_energy_eV + trajectory.kinetic_energy_eV)[late] / len(trajectory.numbers)
    line = np.polyfit(time_ps, total, 1)
    return Energy(float(line[0]), float((total - np.polyval(line, time_ps)).std()))


def scan(folder: Path, material: str) -> dict[tuple[str, str, float], Scan]:
    """Compute phonons for all evaluators, precisions and distances."""
    found = {}
    for evaluator, dtype in FORCES:
        archive = run_campaign(
            folder,
            [material],
            f"name=scan-{evaluator}-{dtype}",
            "stages=[relax,displace]",
            f"displace.distances_A=[{','.join(map(str, DISTANCES_A))}]",
            f"displace.dtype={dtype}",
            f"engine.displace_evaluator={evaluator}",
        )
        with open_archive(archive) as view:
            for distance in DISTANCES_A:
                constants = force_constants(view, material, "demo", distance)
                found[evaluator, dtype, distance] = commensurate_modes(build_phonopy(constants))

    def difference_THz(modes: Modes, distance: float) -> float:
        return float(np.abs(modes.frequencies_THz - found[*REFERENCE, distance].frequencies_THz).max())

    return {
        key: Scan(modes.minimum_THz, difference_THz(modes, 0.01), difference_THz(modes, key[2]))
        for key, modes in found.items()
    }


def _lengths(name: str, production_ps: float) -> list[str]:
    segments = max(1, round(production_ps / SEGMENT_PS))
    return [
        f"name={name}",
        f"dynamics.equilibration_ps={SEGMENT_PS}",
        f"dynamics.production_ps={segments * SEGMENT_PS:.2f}",
        f"dynamics.segment_ps={SEGMENT_PS}",
        f"dynamics.frame_interval_fs={FRAME_FS}",
    ]


def tables(
    material: str,
    dynamics: Mapping[str, Dynamics],
    scans: Mapping[tuple[str, str, float], Scan],
    steps: Mapping[float, tuple[Dynamics, Energy]],
) -> str:
    """Return everything as Markdown."""
    lines = [f"{material}, bundled model, 80 atoms.", "", "| dynamics in | sigma | T (K) |", "|---|--:|--:|"]
    lines += [f"| {name} | {d.sigma:.4f} ± {d.error:.4f} | {d.temperature_K:.1f} |" for name, d in dynamics.items()]
    lines += ["", "| largest difference of a frequency (THz) | " + " | ".join(f"{d} Å" for d in DISTANCES_A) + " |"]
    lines += ["|---|" + "--:|" * len(DISTANCES_A)]
    biases = " | ".join(f"{scans[*REFERENCE, d].bias_THz:.1e}" for d in DISTANCES_A)
    lines += [f"| torch, float64, from that at 0.01 Å | {biases} |"]
    for evaluator, dtype in FORCES[1:]:
        noises = " | ".join(f"{scans[evaluator, dtype, d].noise_THz:.1e}" for d in DISTANCES_A)
        lines.append(f"| {evaluator}, {dtype}, from torch, float64 | {noises} |")
    lowest = " | ".join(f"{scans[*REFERENCE, d].lowest_THz:.4f}" for d in DISTANCES_A)
    lines += [f"| lowest vibration (THz), torch, float64 | {lowest} |"]
    lines += ["", "| time step (fs) | sigma | T (K) | NVE drift (meV/atom/ps) | fluctuation (meV/atom) |"]
    lines += ["|--:|--:|--:|--:|--:|"]
    for step, (langevin, nve) in steps.items():
        lines.append(
            f"| {step:g} | {langevin.sigma:.4f} ± {langevin.error:.4f} | {langevin.temperature_K:.1f} | "
            f"{nve.drift_meV_atom_ps:+.1e} | {nve.fluctuation_meV_atom:.1e} |"
        )
    return "\n".join(lines)


def draw(
    path: Path,
    dynamics: Mapping[str, Dynamics],
    scans: Mapping[tuple[str, str, float], Scan],
    steps: Mapping[float, tuple[Dynamics, Energy]],
) -> None:
    """Draw the studies side by side."""
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    left.errorbar(
        [d.sigma for d in dynamics.values()],
        range(len(dynamics)),
        xerr=[d.error for d in dynamics.values()],
        fmt="o",
        capsize=4,
    )
    left.set(yticks=range(len(dynamics)), yticklabels=dynamics, xlabel="sigma (300 K)", title="precision of dynamics")
    left.set_ylim(-0.6, len(dynamics) - 0.4)
    left.locator_params(axis="x", nbins=5)
    others = [d for d in DISTANCES_A if d != 0.01]
    biases = [scans[*REFERENCE, d].bias_THz for d in others]
    middle.loglog(others, biases, "o-", label="torch, float64: from 0.01 Å")
    for evaluator, dtype in FORCES[1:]:
        noises = [scans[evaluator, dtype, d].noise_THz for d in DISTANCES_A]
        middle.loglog(DISTANCES_A, noises, "o-", label=f"{evaluator}, {dtype}: from torch, float64")
    middle.set(xlabel="displacement (Å)", ylabel="largest difference (THz)", title="phonons")
    middle.set_ylim(1e-7, 1.0)
    middle.set_xticks(DISTANCES_A, [f"{d:g}" for d in DISTANCES_A])
    middle.minorticks_off()
    middle.legend(fontsize=8)
    sizes = list(steps)
    right.errorbar(sizes, [d.sigma for d, _ in steps.values()], yerr=[d.error for d, _ in steps.values()], fmt="o-")
    right.set(xlabel="time step (fs)", ylabel="sigma (300 K)", title="time step")
    fluctuation = right.twinx()
    fluctuation.loglog(sizes, [nve.fluctuation_meV_atom for _, nve in steps.values()], "s--", color="C1")
    fluctuation.set_xscale("linear")
    fluctuation.set_ylabel("NVE fluctuation (meV/atom)", color="C1")
    figure.savefig(path, dpi=110)


def write_docs(text: str) -> None:
    """Replace the tables of docs/precision.md."""
    path = DOCS / "precision.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the studies and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--material", default="Cs2NaInCl6")
    parser.add_argument("--production-ps", type=float, default=7.68)
    parser.add_argument("--docs", action="store_true", help="write docs/precision.png and the tables of its page")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    material, length = options.material, options.production_ps
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scans = scan(folder, material)
        steps: dict[float, Any] = {}
        for step in TIME_STEPS_FS:
            langevin = dynamics_of(folder, material, f"dt-{step:g}", length, f"dynamics.timestep_fs={step}")
            steps[step] = langevin, energy_of(folder, material, step, math.ceil(length / 2.0))
        double = dynamics_of(folder, material, "float64", length, "dynamics.dtype=float64", "engine.evaluator=torch")
        single = dynamics_of(folder, material, "float32", length, "engine.evaluator=torch", "seed=1")
        dynamics = {
            "float64, torch": double,
            "float32, torch, another seed": single,
            "float32, symmetrix": steps[2.0][0],
        }
    text = tables(material, dynamics, scans, steps)
    print(text)
    if options.docs:
        write_docs(text)
        draw(DOCS / "precision.png", dynamics, scans, steps)


if __name__ == "__main__":
    main()
