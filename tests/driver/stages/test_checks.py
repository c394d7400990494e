from __future__ import annotations

import numpy as np
import pytest

from driver.archive.records import Structure
from driver.errors import TaskError
from driver.stages.checks import check_structure


def structure(positions, cell=None):
    return Structure(
        np.array([55, 35])[: len(positions)],
        np.array(positions, float),
        np.eye(3) * 6.0 if cell is None else np.array(cell, float),
    )


def test_a_crystal_passes():
    check_structure(structure([[0, 0, 0], [3, 3, 3]]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (structure([[0, 0, 0], [0, 0, 0.3]]), r"atoms 0 \(Cs\) and 1 \(Br\) are 0.300 A apart"),
        (structure([[0.1, 0, 0], [5.9, 0, 0]]), r"atoms 0 \(Cs\) and 1 \(Br\) are 0.200 A apart"),
        (structure([[0, 0, 0]], np.diag([6, 6, 0.4])), r"atom 0 \(Cs\) and its periodic image are 0.400 A apart"),
        (structure([[0, 0, 0], [0, np.nan, 3]]), r"atom 1 \(Br\) is not finite"),
        (structure([[0, 0, 0], [3, 3, 3]], np.diag([6, 6, np.inf])), "cell has entries that are not finite"),
        (structure([[0, 0, 0], [3, 3, 3]], np.diag([6, 6, 0])), "a volume of 0 A"),
        (structure([[0, 0, 0]], [[100, 0, 0], [100, 0.05, 0], [0, 0, 6]]), "so skewed"),
    ],
)
def test_what_is_no_crystal_is_refused_by_name(bad, message):
    with pytest.raises(TaskError, match=message):
        check_structure(bad)
