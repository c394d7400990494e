"""The labels, and when there is none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import sections
from analysis.anharmonic import BlockError, Sigma
from analysis.harmonic import Modes
from analysis.html import label
from analysis.stability import anharmonic_label, harmonic_label
from analysis.tables import imaginary_modes, remark
from analysis.validity import Validity

VALID = Validity((), 10.0, 300.0, BlockError(1.0, 1, True), {}, 0.0)


def measured(value: float, error: float, converged: bool = True) -> Sigma:
    return Sigma(value, BlockError(error, 4, converged), value, {}, 1000)


@pytest.mark.parametrize(
    ("sigma", "stable"),
    [
        (measured(0.336, 0.004), True),
        (measured(1.3, 0.05), False),
        (measured(0.788, 0.051, converged=False), None),
        (measured(1.9, 0.051, converged=False), None),
        (measured(0.95, 0.03), None),
        (measured(1.05, 0.03), None),
        (measured(0.93, 0.03), True),
        (measured(1.07, 0.03), False),
        (measured(0.5, float("nan"), converged=False), None),
        (measured(0.5, float("nan")), None),
        (measured(1e-7, 0.0), True),
    ],
)
def test_a_label_needs_an_error_that_tells_sigma_from_1(sigma, stable):
    found = anharmonic_label(sigma, VALID, 300.0)
    assert found.stable is stable
    assert f"sigma {sigma.pooled:.3f} ± {sigma.error.error:.3f}" in found.reason


def test_an_unclear_sigma_is_undecided_in_table_and_report():
    reason = anharmonic_label(measured(0.788, 0.051, converged=False), VALID, 300.0)
    row = dict.fromkeys(("relax_status", "displace_status", "dynamics_status"), "done")
    row |= {"failure": "", "run_problems": "", "anharmonically_stable": None, "sigma_pooled": 0.788}
    row |= {"anharmonic_reason": reason.reason}
    assert remark(row) == "sigma 0.788 ± 0.051, an error that is not converged: the run is too short"
    assert 'class="label undecided"' in label(None, reason.reason)


def modes(qpoints, weights, frequencies) -> Modes:
    frequencies = np.array(frequencies)
    return Modes(np.array(qpoints), np.array(weights), frequencies, np.ones(frequencies.shape, dtype=bool))


def test_imaginary_modes_are_named():
    """Where so few of the mesh are imaginary that a percentage rounds to 0.0."""
    commensurate = modes([[0, 0, 0], [0.5, 0.5, 0]], [1, 1], [[1.0, 2.0], [-0.45, 2.0]])
    mesh = modes([[0, 0, 0], [0.5, 0.5, 0], [0.25, 0, 0]], [1, 3, 20000], [[1.0, 2.0], [-0.45, 2.0], [0.4, 2.0]])
    found = harmonic_label(commensurate, mesh, -0.1)
    assert found.stable is False
    assert found.reason == (
        "lowest -0.45 THz at q = (0.5 0.5 0); 1 of 4 modes on the supercell's q points, 3 of 40008 on the mesh"
    )
    row = {
        "imaginary_modes_commensurate": 1,
        "imaginary_modes_fraction": mesh.imaginary(-0.1)[1],
        "worst_q": "0.5 0.5 0",
    }
    assert imaginary_modes(row) == "1 on the supercell's q points, 0.0075 % of the mesh; lowest at q = (0.5 0.5 0)"
    assert imaginary_modes(row | {"imaginary_modes_fraction": 0.0}).startswith(
        "1 on the supercell's q points, none of the mesh"
    )
    assert imaginary_modes(row | {"imaginary_modes_commensurate": 0, "imaginary_modes_fraction": 0.0}) == "none"
    assert imaginary_modes(row | {"imaginary_modes_commensurate": pd.NA}) == "–"
    assert "data-value" in sections._imaginary_cell(row)
