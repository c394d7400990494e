"""What the analysis may be told, and what it takes from an archive's own configuration where it is told nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from analysis.validity import ValiditySettings
from driver.archive.records import Header
from driver.errors import UsageError
from driver.settings import DynamicsSettings

REDUCED_STAGES = ("relax", "displace", "dynamics")
"""The stages that metrics are reduced from, in order."""


@dataclass(frozen=True)
class AnalysisSettings:
    """Options of a reduction.

    Attributes
    ----------
    sigma_distance_A, bands_distance_A : float or None
        Which set of displacements sigma, and phonons, are reduced from; None: as the campaign was configured.
    equilibration_ps : float or None
        How much of each trajectory's beginning is dropped; None: as the campaign was configured.
    tolerance_THz : float
        A vibration is imaginary, for label 1, below this signed frequency.
    mesh_length_A : float
        Density of the mesh of q points (harmonic.mesh_modes).
    thermal_temperature_K : float
        Of heat capacity, entropy and free energy.
    symprec_A : float
        Tolerance of symmetry analysis of relaxed structures.
    validity : ValiditySettings
    """

    sigma_distance_A: float | None = None
    bands_distance_A: float | None = None
    equilibration_ps: float | None = None
    tolerance_THz: float = -0.1
    mesh_length_A: float = 100.0
    thermal_temperature_K: float = 300.0
    symprec_A: float = 1e-3
    validity: ValiditySettings = field(default_factory=ValiditySettings)

    def __post_init__(self) -> None:
        if not self.tolerance_THz <= 0.0:
            raise UsageError(
                f"tolerance {self.tolerance_THz:g} THz: must be 0 or negative, as imaginary frequencies are"
            )
        if not self.mesh_length_A > 0.0:
            raise UsageError(f"mesh length {self.mesh_length_A:g} A: must be above 0")
        if self.equilibration_ps is not None and not self.equilibration_ps >= 0.0:
            raise UsageError(f"equilibration {self.equilibration_ps:g} ps: must be 0 or more")


@dataclass(frozen=True)
class CampaignSettings:
    """What the analysis needs to know of how a campaign was run; None where its configuration does not say."""

    sigma_distance_A: float | None
    bands_distance_A: float | None
    displace_symprec_A: float
    equilibration_ps: float | None
    temperature_K: float | None
    ensemble: str
    segments: int | None
    stages: tuple[str, ...]


def campaign_settings(header: Header, overrides: AnalysisSettings | None = None) -> CampaignSettings:
    """Read an archive's header; what `overrides` gives takes precedence.

    Raises
    ------
    UsageError
        If the header's configuration is not readable.
    """
    given = overrides or AnalysisSettings()
    known = flat_configuration(header)

    def value(override: float | None, name: str) -> float | None:
        found = known.get(name) if override is None else override
        return None if found is None else float(found)

    return CampaignSettings(
        sigma_distance_A=value(given.sigma_distance_A, "displace.sigma_distance_A"),
        bands_distance_A=value(given.bands_distance_A, "displace.bands_distance_A"),
        displace_symprec_A=float(known.get("displace.symprec_A", 1e-5)),
        equilibration_ps=value(given.equilibration_ps, "dynamics.equilibration_ps"),
        temperature_K=value(None, "dynamics.temperature_K"),
        ensemble=str(known.get("dynamics.ensemble", "")),
        segments=_planned_segments(known),
        stages=tuple(known.get("stages") or REDUCED_STAGES),
    )


def _planned_segments(known: Mapping[str, Any]) -> int | None:
    """Return how many segments a whole trajectory has, counted as the campaign counts them."""
    names = ("dynamics.equilibration_ps", "dynamics.production_ps", "dynamics.segment_ps")
    if any(known.get(name) is None for name in names):
        return None
    equilibration, production, segment = (float(known[name]) for name in names)
    return DynamicsSettings(equilibration_ps=equilibration, production_ps=production, segment_ps=segment).segments


def flat_configuration(header: Header) -> dict[str, Any]:
    """Return the campaign's configuration as `section.field` -> value; its physics settings have the last word."""
    try:
        composed = yaml.safe_load(header.config_yaml) or {}
        physics = {name: json.loads(text) for name, text in header.physics.items()}
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"the archive's configuration cannot be read: {error}") from error
    return _flatten(composed, "") | physics


def _flatten(tree: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, branch in tree.items():
        flat |= _flatten(branch, f"{prefix}.{name}" if prefix else str(name))
    return flat
