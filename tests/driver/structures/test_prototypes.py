from __future__ import annotations

import numpy as np
import pytest
import spglib
from ase.data import chemical_symbols

from driver.errors import UsageError
from driver.structures.convert import to_ase
from driver.structures.prototypes import canonical_formula, interpret


def symmetry(structure, symprec=1e-6):
    scaled = to_ase(structure).get_scaled_positions()
    return spglib.get_symmetry_dataset((structure.cell, scaled, structure.numbers), symprec=symprec)


def test_elpasolite_has_the_conventional_sites():
    """M 4a, M' 4b, A 8c, X 24e of Fm-3m, with M at the origin, A at a quarter and X at (x, 0, 0)."""
    compound = interpret("Cs2AgBiBr6")
    structure = compound.structure()
    dataset = symmetry(structure)
    assert dataset.number == 225
    letters = dict(zip((chemical_symbols[n] for n in structure.numbers), dataset.wyckoffs, strict=True))
    assert letters["Cs"] == "c"
    assert letters["Br"] == "e"
    assert {letters["Ag"], letters["Bi"]} == {"a", "b"}
    a_A = (4.0 * structure.volume) ** (1 / 3)
    by_symbol = {s: structure.positions[to_ase(structure).symbols == s] / a_A for s in ("Cs", "Ag", "Bi", "Br")}
    np.testing.assert_allclose(by_symbol["Ag"], [[0, 0, 0]])
    np.testing.assert_allclose(by_symbol["Bi"], [[0.5, 0.5, 0.5]])
    np.testing.assert_allclose(by_symbol["Cs"], [[0.25] * 3, [0.75] * 3])
    x = by_symbol["Br"].max()
    assert 0.25 < x < 0.27  # the halide sits closer to the smaller Bi(III)
    np.testing.assert_allclose(np.abs(by_symbol["Br"]).sum(axis=1), x)
    assert [chemical_symbols[n] for n in structure.numbers] == ["Cs"] * 2 + ["Ag", "Bi"] + ["Br"] * 6


def test_bonds_are_in_the_ratio_of_the_radii_and_octahedra_are_regular():
    compound = interpret("Rb2NaTmCl6")
    atoms = to_ase(compound.structure())
    m = atoms.get_distances(2, range(4, 10), mic=True)
    m_prime = atoms.get_distances(3, range(4, 10), mic=True)
    assert np.ptp(m) < 1e-9
    assert np.ptp(m_prime) < 1e-9
    expected = (compound.M.radius_A + compound.X.radius_A) / (compound.M_prime.radius_A + compound.X.radius_A)
    assert m[0] / m_prime[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("formula", "measured_A"),
    [
        ("Cs2AgBiBr6", 11.27),
        ("Cs2AgBiCl6", 10.78),
        ("Cs2AgInCl6", 10.48),
        ("Cs2NaInCl6", 10.53),
        ("Cs2NaYCl6", 10.73),
        ("K2NaAlF6", 8.12),
        ("CsPbBr3", 5.87),
        ("CsSnBr3", 5.80),
        ("SrTiO3", 3.905),
    ],
)
def test_starting_lattice_constant_is_close_to_the_measured_one(formula, measured_A):
    structure = interpret(formula).structure()
    primitive = len(structure) == 10
    a_A = ((4.0 if primitive else 1.0) * structure.volume) ** (1 / 3)
    assert a_A == pytest.approx(measured_A, rel=0.025)


def test_cubic_perovskite():
    compound = interpret("SrTiO3")
    structure = compound.structure()
    assert symmetry(structure).number == 221
    assert (compound.A.symbol, compound.M.symbol, compound.M) == ("Sr", "Ti", compound.M_prime)
    bonds = to_ase(structure).get_distances(1, range(2, 5), mic=True)
    np.testing.assert_allclose(bonds, structure.cell[0, 0] / 2)


@pytest.mark.parametrize(
    ("written", "canonical", "m", "m_prime"),
    [
        ("Cs2AgBiBr6", "Cs2AgBiBr6", "Ag1+", "Bi3+"),
        ("BiBr6AgCs2", "Cs2AgBiBr6", "Ag1+", "Bi3+"),
        ("Cs8Ag4Bi4Br24", "Cs2AgBiBr6", "Ag1+", "Bi3+"),
        ("Cs2EuAgCl6", "Cs2AgEuCl6", "Ag1+", "Eu3+"),
        ("CsK2AlF6", "K2CsAlF6", "Cs1+", "Al3+"),
        ("K3AlF6", "K3AlF6", "K1+", "Al3+"),
        ("Cs2CsBiBr6", "Cs3BiBr6", "Cs1+", "Bi3+"),
        ("CsInCl3", "CsInCl3", "In1+", "In3+"),
        ("Cs2Au2Cl6", "CsAuCl3", "Au1+", "Au3+"),
        ("Cs2AuInCl6", "Cs2InAuCl6", "In1+", "Au3+"),
        ("Cs2TlAuCl6", "Cs2AuTlCl6", "Au1+", "Tl3+"),
        ("Cs2InAgBr6", "Cs2AgInBr6", "Ag1+", "In3+"),
        ("Cs2TlBiI6", "Cs2TlBiI6", "Tl1+", "Bi3+"),
        ("Cs2Pd2Br6", "CsPdBr3", "Pd1+", "Pd3+"),
    ],
)
def test_oxidation_states_decide_the_sites_of_elpasolites(written, canonical, m, m_prime):
    compound = interpret(written)
    assert (compound.prototype, compound.formula) == ("elpasolite", canonical)
    assert (str(compound.M), str(compound.M_prime)) == (m, m_prime)
    assert interpret(compound.formula).formula == canonical


@pytest.mark.parametrize(
    ("written", "a", "b"),
    [
        ("CsSnBr3", "Cs1+", "Sn2+"),
        ("Br3PbCs", "Cs1+", "Pb2+"),
        ("CsPdBr3", "Cs1+", "Pd2+"),
        ("PbTiO3", "Pb2+", "Ti4+"),
        ("LaAlO3", "La3+", "Al3+"),
    ],
)
def test_oxidation_states_decide_the_sites_of_perovskites(written, a, b):
    compound = interpret(written)
    assert (compound.prototype, str(compound.A), str(compound.M)) == ("perovskite", a, b)


@pytest.mark.parametrize(
    "formula", ["NaCl", "Cs2SnI6", "Cs2AgBiBr5", "Cs2NaKCl6", "CsNeCl3", "Cs2AgBiO6", "TlCl3", "Si"]
)
def test_formula_without_prototype_is_named(formula):
    with pytest.raises(UsageError, match=rf"^{formula}: no prototype.*A2MM'X6.*ABX3") as caught:
        interpret(formula)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "cs2agbibr6", "Cs2Qq", "CsPb0.5Br3", "hello world", "XCl3"])
def test_text_that_is_no_formula_is_named(text):
    with pytest.raises(UsageError, match="not a chemical formula"):
        interpret(text)
    with pytest.raises(UsageError, match="not a chemical formula"):
        canonical_formula(text)


def test_canonical_formula_of_other_crystals_is_reduced():
    assert canonical_formula("Br24Cs8Bi4Ag4") == "Cs2AgBiBr6"
    assert canonical_formula("Si8") == "Si"
    assert canonical_formula("Cl4Na4") == "NaCl"
