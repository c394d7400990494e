"""From a formula to a crystal: the elpasolite A2MM'X6 and the simple cubic perovskite ABX3."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import numpy.typing as npt
from ase.data import atomic_numbers
from ase.formula import Formula

from driver.archive.records import Structure
from driver.errors import UsageError
from driver.structures.radii import Ion, charges
from driver.structures.tolerance import bartel_tau, octahedral_factor, octahedral_mismatch, tolerance_factor

ELPASOLITE = "elpasolite"
PEROVSKITE = "perovskite"

_ANION_CHARGES = {"F": -1, "Cl": -1, "Br": -1, "I": -1, "O": -2, "S": -2, "Se": -2}

_UNUSUAL = {Ion("Pd", 1), Ion("Cu", 3), Ion("Ag", 3)}
"""Assigned only where nothing else is neutral."""

_ACCEPTED = (
    "accepted are elpasolites A2MM'X6 (A+, M+, M'3+ and a halide; also A3M'X6 and AMX3) and cubic perovskites ABX3 "
    "(a halide, O, S or Se) of ions with a six-fold Shannon radius; give other crystals as structure files"
)


@dataclass(frozen=True)
class Compound:
    """A formula whose ions have been assigned to the sites of a prototype.

    Attributes
    ----------
    prototype : str
        "elpasolite" or "perovskite".
    A, M, M_prime, X : Ion
        The large cation, M(I), M'(III), and the anion. In a simple perovskite B is both M and M_prime.
    """

    prototype: str
    A: Ion
    M: Ion
    M_prime: Ion
    X: Ion

    @property
    def formula(self) -> str:
        """Canonical formula: A2 M(I) M'(III) X6 as in Cs2AgBiBr6, A3M'X6 for A = M, AMX3 for M = M'."""
        a, m, m_prime, x = (ion.symbol for ion in (self.A, self.M, self.M_prime, self.X))
        if m == m_prime:
            return f"{a}{m}{x}3"
        return f"{a}3{m_prime}{x}6" if a == m else f"{a}2{m}{m_prime}{x}6"

    @property
    def descriptors(self) -> dict[str, float]:
        """Dimensionless tolerance factors of the composition (tolerance.py), all from six-fold radii.

        Except `bartel_tau`, which takes A twelve-fold, as Bartel does; `bartel_tau_six_fold` is the variant with A
        six-fold, of Yang & Li.
        """
        rM, rM_prime, rX = self.M.radius_A, self.M_prime.radius_A, self.X.radius_A
        return {
            "octahedral_factor": octahedral_factor(rM, rM_prime, rX),
            "octahedral_mismatch": octahedral_mismatch(rM, rM_prime, rX),
            "tolerance_factor": tolerance_factor(self.A.radius_A, rM, rM_prime, rX),
            "bartel_tau": bartel_tau(self.A.large_site_radius_A, rM, rM_prime, rX, charge_A=self.A.charge),
            "bartel_tau_six_fold": bartel_tau(self.A.radius_A, rM, rM_prime, rX, charge_A=self.A.charge),
        }

    @property
    def pseudocubic_lattice_constant_A(self) -> float:
        """Lattice constant in angstrom of the simple cubic perovskite with the mean octahedral cation.

        a = 0.05444 + 0.467706 (rA + rX) + 1.308087 (rB + rX), six-fold radii: Ubic, J. Am. Ceram. Soc. 90, 3326 (2007),
        10.1111/j.1551-2916.2007.01881.x. Within 2 % for the halides tried; only where relaxation starts.
        """
        rB, rX = (self.M.radius_A + self.M_prime.radius_A) / 2.0, self.X.radius_A
        return 0.05444 + 0.467706 * (self.A.radius_A + rX) + 1.308087 * (rB + rX)

    def structure(self) -> Structure:
        """Return the primitive cell: 10 atoms (A, A, M, M', X x 6) of Fm-3m, or 5 atoms (A, B, X x 3) of Pm-3m."""
        if self.prototype == PEROVSKITE:
            return _perovskite(self)
        return _elpasolite(self)


def interpret(formula: str) -> Compound:
    """Assign the elements of a formula to the sites of a prototype by their oxidation states.

    The order in which elements are written does not matter. Where two assignments of M(I) and M'(III) are neutral
    (Cs2InAuCl6), usual oxidation states go first, then the smaller sum of radii: for all compounds of Yang & Li (2022)
    this is the assignment behind their tolerance factors. AMX3 is a simple perovskite where M2+ exists; else, or if
    written A2M2X6, it is an elpasolite with M(I) and M'(III) of one element.

    Parameters
    ----------
    formula : str
        Such as Cs2AgBiBr6, K3AlF6, CsInCl3 or CsPbBr3.

    Raises
    ------
    UsageError
        If there is no such compound; names the formula and what is accepted.
    """
    counts = _count(formula)
    divisor = math.gcd(*counts.values())
    reduced = {symbol: count // divisor for symbol, count in counts.items()}
    prototypes = [_elpasolites, _perovskites] if 6 in counts.values() else [_perovskites, _elpasolites]
    for assignments in prototypes:
        candidates = assignments(reduced)
        if candidates:
            return candidates[0]
    raise UsageError(f"{formula}: no prototype; {_ACCEPTED}")


def canonical_formula(formula: str) -> str:
    """Return the formula under which a composition is known here: as `Compound.formula`, else reduced as ASE does.

    Raises
    ------
    UsageError
        If the text is not a chemical formula.
    """
    try:
        return interpret(formula).formula
    except UsageError:
        _count(formula)
        return str(Formula(formula).reduce()[0].convert("metal"))


def _count(formula: str) -> dict[str, int]:
    try:
        counts = Formula(formula).count()
    except ValueError:
        counts = {}
    if not counts or not all(symbol in atomic_numbers and symbol != "X" for symbol in counts):
        raise UsageError(f"{formula!r} is not a chemical formula; write it as Cs2AgBiBr6")
    return dict(counts)


def _split(reduced: Mapping[str, int], anion_count: int) -> Iterator[tuple[dict[str, int], Ion]]:
    """Yield (cations, anion) for each anion that occurs so many times."""
    for symbol, count in reduced.items():
        if count == anion_count and symbol in _ANION_CHARGES:
            cations = {other: n for other, n in reduced.items() if other != symbol}
            yield cations, Ion(symbol, _ANION_CHARGES[symbol])


def _perovskites(reduced: Mapping[str, int]) -> list[Compound]:
    """Return all neutral ABX3, that with the largest rA - rB first."""
    found = []
    for cations, anion in _split(reduced, 3):
        if sorted(cations.values()) != [1, 1]:
            continue
        for a, b in permutations(cations):
            for charge in charges(a):
                remainder = -3 * anion.charge - charge
                if charge > 0 and remainder > 1 and remainder in charges(b):
                    ions = Ion(a, charge), Ion(b, remainder)
                    found.append(Compound(PEROVSKITE, ions[0], ions[1], ions[1], anion))
    return sorted(found, key=lambda compound: compound.M.radius_A - compound.A.radius_A)


def _elpasolites(reduced: Mapping[str, int]) -> list[Compound]:
    """Return all neutral A2MM'X6, the preferred one first."""
    found = []
    splits = [*_split(reduced, 6), *_split({symbol: 2 * count for symbol, count in reduced.items()}, 6)]
    for cations, anion in splits:
        if anion.charge != -1 or sum(cations.values()) != 4 or len(cations) < 2:
            continue
        for a, count in cations.items():
            if count < 2 or 1 not in charges(a):
                continue
            rest = [s for s, n in {**cations, a: count - 2}.items() for _ in range(n)]
            for m, m_prime in sorted(set(permutations(rest))):
                if 1 in charges(m) and 3 in charges(m_prime):
                    found.append(Compound(ELPASOLITE, Ion(a, 1), Ion(m, 1), Ion(m_prime, 3), anion))
    return sorted(found, key=lambda c: (len({c.M, c.M_prime} & _UNUSUAL), c.M.radius_A + c.M_prime.radius_A))


def _elpasolite(compound: Compound) -> Structure:
    """Fm-3m, sites of the conventional cell: A 8c (1/4,1/4,1/4), M 4a (0,0,0), M' 4b (1/2,1/2,1/2), X 24e (x,0,0)."""
    a_A = 2.0 * compound.pseudocubic_lattice_constant_A
    bond_ratio = (compound.M.radius_A + compound.X.radius_A) / (
        compound.M.radius_A + compound.M_prime.radius_A + 2.0 * compound.X.radius_A
    )
    x = bond_ratio / 2.0  # M-X takes x of the half edge, M'-X the rest
    sites = [[0.25] * 3, [0.75] * 3, [0.0] * 3, [0.5] * 3, *(sign * x * axis for axis in np.eye(3) for sign in (1, -1))]
    cell = a_A / 2.0 * (np.ones((3, 3)) - np.eye(3))
    ions = [compound.A, compound.A, compound.M, compound.M_prime, *[compound.X] * 6]
    return Structure(_numbers(ions), a_A * np.array(sites), cell)


def _perovskite(compound: Compound) -> Structure:
    """Pm-3m: A 1b (1/2,1/2,1/2), B 1a (0,0,0), X 3d (1/2,0,0)."""
    a_A = compound.pseudocubic_lattice_constant_A
    sites = [[0.5] * 3, [0.0] * 3, *(0.5 * np.eye(3))]
    ions = [compound.A, compound.M, *[compound.X] * 3]
    return Structure(_numbers(ions), a_A * np.array(sites), a_A * np.eye(3))


def _numbers(ions: Sequence[Ion]) -> npt.NDArray[np.int64]:
    return np.array([atomic_numbers[ion.symbol] for ion in ions], dtype=np.int64)
