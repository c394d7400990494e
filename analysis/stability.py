"""The stability labels. They answer different questions and often disagree, so all are reported.

1. harmonic: no vibration below the tolerance, on the q points that fit the supercell and on a mesh;
2. anharmonic: sigma(300 K) below 1, the criterion of Yang and Li, Chem. Mater. 34, 9072 (2022).

A label is None where it cannot be given: a run that failed or is not valid says nothing about its crystal, and neither
does a sigma whose error is not known, or too large to say on which side of 1 it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from analysis.anharmonic import Sigma
from analysis.harmonic import Modes
from analysis.validity import Validity

SIGMA_UNSTABLE = 1.0
"""At and above this sigma the harmonic model explains nothing of the forces."""

SIGMA_ERRORS = 2.0
"""A sigma that is not so many of its standard errors away from `SIGMA_UNSTABLE` gives no label."""

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
    if min(minima.values()) < tolerance_THz:
        return Label(False, imaginary_modes(commensurate, mesh, tolerance_THz))
    return Label(True, f"no vibration below {tolerance_THz:g} THz")


def imaginary_modes(commensurate: Modes, mesh: Modes, tolerance_THz: float) -> str:
    """Return, in words, which vibrations lie below the tolerance: how low, at which q point, and how many.

    Such as `lowest -0.45 THz at q = (0.5 0.5 0); 3 of 237 modes on the supercell's q points, 12 of 30717 on the mesh`.
    """
    lowest = min(commensurate, mesh, key=lambda modes: modes.minimum_THz)
    q = " ".join(f"{component:.4g}" for component in lowest.worst_q)
    supercell, whole = (f"{modes.imaginary(tolerance_THz)[0]} of {modes.count}" for modes in (commensurate, mesh))
    where = f"{supercell} modes on the supercell's q points, {whole} on the mesh"
    return f"lowest {lowest.minimum_THz:.2f} THz at q = ({q}); {where}"


def anharmonic_label(sigma: Sigma | None, validity: Validity | None, target_K: float) -> Label:
    """Label 2: stable if sigma(300 K) < 1, given a valid run at 300 K and an error that tells sigma from 1."""
    if sigma is None or validity is None:
        return Label(None, "no trajectory")
    if abs(target_K - SIGMA_TEMPERATURE_K) > 0.5:
        return Label(None, f"run at {target_K:g} K; the label is defined at {SIGMA_TEMPERATURE_K:g} K")
    if not validity.valid:
        return Label(None, "; ".join(validity.reasons))
    if not sigma.pooled >= 0.0:
        return Label(None, "sigma is not a number")
    found = f"sigma {sigma.pooled:.3f} ± {sigma.error.error:.3f}"
    if not sigma.error.converged:
        return Label(None, f"{found}, an error that is not converged: the run is too short")
    if not tells_from_one(sigma.pooled, sigma.error.error, sigma.error.converged):
        return Label(None, f"{found} is within {SIGMA_ERRORS:g} errors of {SIGMA_UNSTABLE:g}: a longer run may tell")
    return Label(sigma.pooled < SIGMA_UNSTABLE, found)


def tells_from_one(sigma: float, error: float, converged: bool) -> bool:
    """Return whether a sigma with its standard error says on which side of 1 it is."""
    return converged and abs(sigma - SIGMA_UNSTABLE) > SIGMA_ERRORS * error
