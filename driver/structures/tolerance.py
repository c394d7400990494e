"""Tolerance factors of perovskites and double perovskites. All radii in angstrom; all factors dimensionless.

A simple perovskite ABX3 is the case rM = rM_prime.

Filip & Giustino, PNAS 115, 5397 (2018), 10.1073/pnas.1719179115; Bartel et al., Sci. Adv. 5, eaav0693 (2019),
10.1126/sciadv.aav0693.
"""

from __future__ import annotations

import math


def octahedral_factor(rM: float, rM_prime: float, rX: float) -> float:
    """Return mu = (rM + rM_prime) / (2 rX)."""
    return (rM + rM_prime) / (2.0 * rX)


def octahedral_mismatch(rM: float, rM_prime: float, rX: float) -> float:
    """Return dmu = |rM - rM_prime| / (2 rX)."""
    return abs(rM - rM_prime) / (2.0 * rX)


def tolerance_factor(rA: float, rM: float, rM_prime: float, rX: float) -> float:
    """Return the generalised Goldschmidt factor of Filip & Giustino.

    t = (rA + rX) / (sqrt(2) sqrt(((rM + rM')/2 + rX)^2 + (rM - rM')^2/4)); Goldschmidt's own for rM = rM'.
    """
    mean_bond = (rM + rM_prime) / 2.0 + rX
    return (rA + rX) / (math.sqrt(2.0) * math.hypot(mean_bond, (rM - rM_prime) / 2.0))


def bartel_tau(rA: float, rM: float, rM_prime: float, rX: float, *, charge_A: int = 1) -> float:
    """Return Bartel's tau; a perovskite is expected below 4.18.

    tau = rX/r - nA (nA - (rA/r) / ln(rA/r)) with r the mean of rM and rM' and nA the charge of A. For rA <= r the
    expression has no meaning and tau is infinite, its limit from above: never a perovskite.
    """
    r = (rM + rM_prime) / 2.0
    if rA <= r:
        return math.inf
    return rX / r - charge_A * (charge_A - (rA / r) / math.log(rA / r))
