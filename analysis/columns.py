"""The columns of the metrics table. Units stand in the names; a value that could not be had is left empty."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.inputs import Sites
from analysis.pair import Anharmonicity, PairResult, Phonons
from analysis.settings import AnalysisSettings, CampaignSettings
from analysis.states import PairState
from driver.archive.reader import ArchiveView

ELPASOLITE_SITES = {"A": 0, "M": 2, "M_prime": 3, "X": 4}
"""Atoms of the primitive cell of A2MM'X6, in the order of driver.structures.prototypes, by the site they stand for."""

FLAGS = ("harmonically_stable", "anharmonically_stable", "sigma_error_converged", "run_valid")
"""Columns that are true, false or empty."""

COUNTS = (
    "imaginary_modes_commensurate",
    "sigma_frames",
    "space_group_initial",
    "space_group_final",
    "dynamics_segments",
)
"""Columns that hold integers, or are empty."""

RELAXED = ("a_A", "b_A", "c_A", "alpha_deg", "beta_deg", "gamma_deg", "volume_A3", "energy_per_atom_eV")
"""Columns taken over from the archive's table of relaxations."""

IDENTITY = ("material", "model", "formula", "prototype", "harmonically_stable", "anharmonically_stable")
"""What the table begins with."""

LAST = "dynamics_evaluator"
"""What it ends with."""

_LONGEST_HEADER = 100_000

DISPLACED = ("max_residual_force_eV_A", "fc_asymmetry_eV_A2")
"""Columns taken over from the archive's table of displacement forces."""


def is_metrics_file(path: Path) -> bool:
    """Return whether a CSV file is a metrics table, by the columns that it begins and ends with."""
    with path.open(encoding="utf-8", errors="replace") as file:
        header = file.readline(_LONGEST_HEADER).rstrip("\n").split(",")
    return tuple(header[: len(IDENTITY)]) == IDENTITY and header[-1] == LAST


class StageScalars:
    """The scalar results of a stage, looked up by material and model."""

    def __init__(self, view: ArchiveView, stage: str) -> None:
        self.columns = view.table(stage)
        keys = zip(self.columns["material"], self.columns["model"], strict=True)
        # Later rows stand for later attempts, or segments.
        self.rows = {(str(material), str(model)): index for index, (material, model) in enumerate(keys)}

    def take(self, pair: tuple[str, str], names: tuple[str, ...]) -> dict[str, Any]:
        """Return the named columns of the last row of a material and model, None where there is none."""
        index = self.rows.get(pair)
        return {name: None if index is None else _plain(self.columns[name][index]) for name in names}


class RowBuilder:
    """Makes rows of the metrics table from results and from what the archive's tables say."""

    def __init__(self, view: ArchiveView, campaign: CampaignSettings, settings: AnalysisSettings) -> None:
        materials = view.table("materials")
        self.rows = {key: row for row, key in enumerate(materials["key"])}
        self.materials, self.models = materials, view.models()
        self.relax, self.displace = StageScalars(view, "relax"), StageScalars(view, "displace")
        self.evaluators = _evaluators(view)
        self.campaign, self.settings = campaign, settings

    def row(self, result: PairResult, state: PairState) -> dict[str, Any]:
        """Return one row: identity, labels, phonons, sigma, run, crystal, provenance, state."""
        pair = (result.material, result.model)
        material = {name: values[self.rows[result.material]] for name, values in self.materials.items()}
        converged = self.relax.take(pair, ("space_group_initial", "space_group_final"))
        return {
            "material": result.material,
            "model": result.model,
            "formula": material["formula"],
            "prototype": material["prototype"],
            **_labels(result),
            **_phonon_columns(result.phonons, self.settings),
            **_sigma_columns(result.anharmonicity),
            **_site_columns(result, material["prototype"]),
            **_run_columns(result.anharmonicity),
            **converged,
            **_crystal_columns(result.sites),
            **self.relax.take(pair, RELAXED),
            **self.displace.take(pair, DISPLACED),
            **json.loads(material["descriptors"]),
            **{f"{stage}_status": status for stage, status in state.stages.items()},
            "dynamics_segments": state.segments,
            "failure": "; ".join(filter(None, [state.failure, *result.problems])),
            "source": material["source"],
            "model_sha256": self.models[result.model].sha256,
            "model_head": self.models[result.model].head,
            LAST: self.evaluators.get(pair, ""),
        }


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _evaluators(view: ArchiveView) -> dict[tuple[str, str], str]:
    """Return, by material and model, what computed the dynamics: `torch float32`."""
    tasks = view.table("tasks")
    found = {}
    columns = (tasks[name] for name in ("material", "model", "stage", "status", "evaluator", "dtype"))
    for material, model, stage, status, evaluator, dtype in zip(*columns, strict=True):
        if stage == "dynamics" and status == "done":
            found[str(material), str(model)] = f"{evaluator} {dtype}".strip()
    return found


def _crystal_columns(sites: Sites | None) -> dict[str, Any]:
    lengths = sites.conventional_lengths_A if sites else (None, None, None)
    return {
        "space_group_symbol": sites.space_group_symbol if sites else "",
        **{f"conventional_{edge}_A": length for edge, length in zip("abc", lengths, strict=True)},
    }


def _labels(result: PairResult) -> dict[str, Any]:
    harmonic = result.phonons.label if result.phonons else None
    anharmonic = result.anharmonicity.label if result.anharmonicity else None
    return {
        "harmonically_stable": harmonic.stable if harmonic else None,
        "anharmonically_stable": anharmonic.stable if anharmonic else None,
        "harmonic_reason": harmonic.reason if harmonic else "no phonons",
        "anharmonic_reason": anharmonic.reason if anharmonic else "no valid trajectory",
    }


def _phonon_columns(phonons: Phonons | None, settings: AnalysisSettings) -> dict[str, Any]:
    temperature = f"{settings.thermal_temperature_K:g}K"
    thermal = phonons.thermal if phonons else None
    columns: dict[str, Any] = dict.fromkeys(
        (
            "min_frequency_commensurate_THz",
            "min_frequency_mesh_THz",
            "worst_q",
            "imaginary_modes_commensurate",
            "imaginary_modes_fraction_commensurate",
            "imaginary_modes_fraction",
            "max_frequency_THz",
            "translation_frequency_THz",
        )
    )
    if phonons:
        commensurate, mesh = phonons.commensurate, phonons.mesh
        count, fraction = commensurate.imaginary(settings.tolerance_THz)
        worst = mesh if mesh.minimum_THz < commensurate.minimum_THz else commensurate
        columns |= {
            "min_frequency_commensurate_THz": commensurate.minimum_THz,
            "min_frequency_mesh_THz": mesh.minimum_THz,
            "worst_q": " ".join(f"{component:.4g}" for component in worst.worst_q),
            "imaginary_modes_commensurate": count,
            "imaginary_modes_fraction_commensurate": fraction,
            "imaginary_modes_fraction": mesh.imaginary(settings.tolerance_THz)[1],
            "max_frequency_THz": float(mesh.frequencies_THz.max()),
            "translation_frequency_THz": commensurate.translation_THz,
        }
    columns |= {
        f"C_V_{temperature}_J_K_mol": thermal.heat_capacity_J_K_mol if thermal else None,
        f"S_{temperature}_J_K_mol": thermal.entropy_J_K_mol if thermal else None,
        f"F_{temperature}_kJ_mol": thermal.free_energy_kJ_mol if thermal else None,
    }
    return columns


def _sigma_columns(anharmonicity: Anharmonicity | None) -> dict[str, Any]:
    sigma = anharmonicity.sigma if anharmonicity else None
    return {
        "sigma_pooled": sigma.pooled if sigma else None,
        "sigma_pooled_error": sigma.error.error if sigma else None,
        "sigma_error_converged": sigma.error.converged if sigma else None,
        "sigma_frame_mean": sigma.frame_mean if sigma else None,
        "sigma_frames": sigma.frames if sigma else None,
    }


def _site_columns(result: PairResult, prototype: str) -> dict[str, Any]:
    """Return sigma by site: of all sites as one text, and for elpasolites also by the role that a site plays."""
    sigma = result.anharmonicity.sigma if result.anharmonicity else None
    by_site: Mapping[str, float] = sigma.by_site if sigma else {}
    columns: dict[str, Any] = {"sigma_sites": "; ".join(f"{site}: {value:.4f}" for site, value in by_site.items())}
    names = result.sites.names if result.sites else ()
    for role, atom in ELPASOLITE_SITES.items():
        is_elpasolite = prototype == "elpasolite" and len(names) == 10
        columns[f"sigma_{role}"] = by_site.get(names[atom]) if is_elpasolite else None
    return columns


def _run_columns(anharmonicity: Anharmonicity | None) -> dict[str, Any]:
    validity = anharmonicity.validity if anharmonicity else None
    return {
        "run_valid": validity.valid if validity else None,
        "run_problems": "; ".join(validity.reasons) if validity else "",
        "production_ps": validity.production_ps if validity else None,
        "temperature_K": validity.temperature_K if validity else None,
        "temperature_error_K": validity.temperature_error.error if validity else None,
        "energy_drift_meV_atom_ps": validity.energy_drift_meV_atom_ps if validity else None,
    }
