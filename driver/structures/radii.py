"""Ions and their radii."""

from __future__ import annotations

from dataclasses import dataclass

from driver.structures.shannon import SHANNON_RADII_A, SUBSTITUTE_RADII_A


@dataclass(frozen=True)
class Ion:
    """An element in an oxidation state.

    Attributes
    ----------
    symbol : str
    charge : int
        Elementary charges.
    """

    symbol: str
    charge: int

    def __str__(self) -> str:
        return f"{self.symbol}{abs(self.charge)}{'+' if self.charge > 0 else '-'}"

    @property
    def radius_A(self) -> float:
        """Six-fold radius in angstrom; KeyError if there is none."""
        return _radii_A(self)[6]

    @property
    def large_site_radius_A(self) -> float:
        """Twelve-fold radius in angstrom, or that of the highest tabulated coordination below (Li: eight-fold)."""
        radii_A = _radii_A(self)
        return radii_A[max(radii_A)]


def charges(symbol: str) -> tuple[int, ...]:
    """Return the oxidation states in which an element has a six-fold radius, ascending; () for none."""
    return tuple(sorted({*SHANNON_RADII_A.get(symbol, {}), *SUBSTITUTE_RADII_A.get(symbol, {})}))


def _radii_A(ion: Ion) -> dict[int, float]:
    tabulated = SHANNON_RADII_A.get(ion.symbol, {}).get(ion.charge)
    return tabulated if tabulated is not None else SUBSTITUTE_RADII_A[ion.symbol][ion.charge]
