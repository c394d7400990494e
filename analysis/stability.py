"""The stability labels. They answer different questions and often disagree, so all are reported.

1. harmonic: no vibration below the tolerance, on the q points that fit the supercell and on a mesh;
2. anharmonic: sigma(300 K) below 1, the criterion of Yang and Li, Chem. Mater. 34, 9072 (2022).

A label is None where it cannot be given: a run that failed or is not valid says nothing about its crystal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from analysis.anharmonic import Sigma
from analysis.harmonic import Modes
from analysis.validity import Validity

SIGMA_UNSTABLE = 1.0
"""At and above this sigma the harmonic model explains nothing of the forces."""

SIGMA_TEMPERATURE_K = 300.0
"""The temperature at which label 2 is defined."""


@dataclass(frozen=True)
class Label:
    """A verdict: True stable, False unstable, None not decided; `reason` says why, in a few words."""

    stable: bool | None
    reason: str

    @property
    def text(self) -> str:
        """`stable`, `unstable` or `undecided`."""
        return {True: "stable", False: "unstable", None: "undecided"}[self.stable]


def harmonic_label(commensurate: Modes | None, mesh: Modes | None, tolerance_THz: float) -> Label:
    """Label 1: stable if no vibration lies below `tolerance_THz` (a negative number) on either set of q points."""
    if commensurate is None or mesh is None:
        return Label(None, "no phonons")
    minima = {"commensurate points": commensurate.minimum_THz, "mesh": mesh.minimum_THz}
    if not all(math.isfinite(minimum) for minimum in minima.values()):
        return Label(None, "frequencies are not numbers")
    worst = min(minima, key=lambda name: minima[name])
    if minima[worst] < tolerance_THz:
        return Label(False, f"{minima[worst]:.2f} THz on the {worst}")
    return Label(True, f"no vibration below {tolerance_THz:g} THz")


def anharmonic_label(sigma: Sigma | None, validity: Validity | None, target_K: float) -> Label:
    """Label 2: stable if sigma(300 K) < 1, given a valid run at 300 K."""
    if sigma is None or validity is None:
        return Label(None, "no trajectory")
    if abs(target_K - SIGMA_TEMPERATURE_K) > 0.5:
        return Label(None, f"run at {target_K:g} K; the label is defined at {SIGMA_TEMPERATURE_K:g} K")
    if not validity.valid:
        return Label(None, "; ".join(validity.reasons))
    if not sigma.pooled >= 0.0:
        return Label(None, "sigma is not a number")
    return Label(sigma.pooled < SIGMA_UNSTABLE, f"sigma {sigma.pooled:.2f}")
