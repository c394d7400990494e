from __future__ import annotations

import pytest

from driver.structures.radii import Ion, charges
from driver.structures.shannon import SHANNON_RADII_A, SUBSTITUTE_RADII_A

COORDINATION = {6: "VI", 8: "VIII", 12: "XII"}
LOW_SPIN = {("Fe", 3), ("Ni", 3), ("Ni", 4), ("Cu", 3)}


def test_radii_are_those_of_another_transcription():
    """Every value against pymatgen's table of Shannon's radii, which was typed in by others."""
    core = pytest.importorskip("pymatgen.core")
    compared = 0
    for symbol, by_charge in SHANNON_RADII_A.items():
        table = core.Element(symbol).data["Shannon radii"]
        for charge, radii_A in by_charge.items():
            for coordination, radius_A in radii_A.items():
                by_spin = table[str(charge)][COORDINATION[coordination]]
                spin = "Low Spin" if (symbol, charge) in LOW_SPIN else "High Spin"
                entry = by_spin[""] if "" in by_spin else by_spin.get(spin, next(iter(by_spin.values())))
                assert entry["ionic_radius"] == radius_A, (symbol, charge, coordination)
                compared += 1
    assert compared > 230


def test_substitutes_stand_only_where_the_source_has_nothing():
    for symbol, by_charge in SUBSTITUTE_RADII_A.items():
        assert not by_charge.keys() & SHANNON_RADII_A[symbol].keys()


def test_large_site_takes_the_highest_coordination():
    assert Ion("Cs", 1).large_site_radius_A == 1.88
    assert Ion("Cs", 1).radius_A == 1.67
    assert Ion("Li", 1).large_site_radius_A == 0.92  # Shannon has no twelve-fold lithium


def test_charges_include_substitutes_and_are_empty_for_noble_gases():
    assert charges("In") == (1, 3)
    assert charges("Bi") == (3, 5)
    assert charges("Ne") == ()
    assert str(Ion("Bi", 3)) == "Bi3+"
    with pytest.raises(KeyError):
        _ = Ion("Bi", 1).radius_A
