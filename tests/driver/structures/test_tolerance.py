from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import pytest

from driver.structures.prototypes import interpret
from driver.structures.tolerance import bartel_tau, octahedral_factor, octahedral_mismatch, tolerance_factor

REFERENCE = Path(
    os.environ.get("LATDYN_REFERENCE_DATA", Path(__file__).parents[3].parent / "shared/data/dft_sigma_300K.csv")
)


def test_close_packed_spheres_have_tolerance_factor_one():
    """Rigid spheres that touch in the ideal cubic perovskite: rA + rX = sqrt(2) (rM + rX)."""
    rM, rX = 0.7, 1.4
    assert tolerance_factor(math.sqrt(2) * (rM + rX) - rX, rM, rM, rX) == pytest.approx(1.0)


def test_octahedral_factors():
    assert octahedral_factor(1.2, 0.8, 2.0) == pytest.approx(0.5)
    assert octahedral_mismatch(0.8, 1.2, 2.0) == octahedral_mismatch(1.2, 0.8, 2.0) == pytest.approx(0.1)
    assert tolerance_factor(1.7, 1.2, 0.8, 2.0) < tolerance_factor(1.7, 1.0, 1.0, 2.0)


def test_bartel_tau_by_hand():
    # rA/r = e makes the logarithm 1: tau = rX/r - 1 (1 - e)
    assert bartel_tau(math.e, 1.0, 1.0, 2.0) == pytest.approx(2.0 - (1.0 - math.e))
    assert bartel_tau(math.e, 1.0, 1.0, 2.0, charge_A=2) == pytest.approx(2.0 - 2.0 * (2.0 - math.e))
    assert bartel_tau(1.0, 1.0, 1.0, 2.0) == math.inf


@pytest.mark.parametrize(("formula", "is_perovskite"), [("CsPbBr3", True), ("SrTiO3", True), ("NaAuCl3", False)])
def test_bartel_tau_tells_known_perovskites(formula, is_perovskite):
    assert (interpret(formula).descriptors["bartel_tau"] < 4.18) == is_perovskite


def test_bartel_tau_takes_the_large_site_twelve_fold():
    # 1.81/1.09 - (1 - x/ln x), x = 1.88/1.09
    x = 1.88 / 1.09
    assert interpret("Cs2AgBiCl6").descriptors["bartel_tau"] == pytest.approx(1.81 / 1.09 - 1.0 + x / math.log(x))
    x = 1.67 / 1.09
    expected = 1.81 / 1.09 - 1.0 + x / math.log(x)
    assert interpret("Cs2AgBiCl6").descriptors["bartel_tau_six_fold"] == pytest.approx(expected)


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the reference table is not here (LATDYN_REFERENCE_DATA)")
def test_descriptors_of_the_reference_table_are_reproduced():
    """Octahedral factor, mismatch and tolerance factor of all compounds that Yang & Li published."""
    columns = {
        "octahedral_factor": "octahedral_factor",
        "tolerance_factor": "tolerance_factor",
        "octahedral_mismatch": "octahedral_mismatch_minus1_if_unfit",
    }
    with REFERENCE.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 1000
    for row in rows:
        descriptors = interpret(row["formula"]).descriptors
        for ours, theirs in columns.items():
            assert descriptors[ours] == pytest.approx(float(row[theirs]), abs=1e-9), (row["formula"], ours)
