"""What differs between a campaign's inputs and an archive's, and how it is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from driver.archive.identity import different_materials, different_models, different_settings, refusal
from driver.archive.records import ArchiveError, MaterialRecord, ModelRecord, Structure
from driver.archive.schema import structure_checksum

CUBE = Structure(np.array([11, 17]), np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]), np.eye(3) * 4.0)


def record(structure: Structure) -> MaterialRecord:
    return MaterialRecord("salt", "NaCl", structure, "test")


def contrast(now: Structure) -> str:
    stored = {"salt": structure_checksum(CUBE)}
    return "; ".join(map(str, different_materials(stored, [record(now)], lambda key: CUBE)))


def test_the_same_inputs_and_new_ones_are_no_difference():
    assert contrast(CUBE) == ""
    assert different_materials({}, [record(CUBE)], lambda key: CUBE) == []
    assert different_settings({"a": "1"}, {"a": "1"}) == []
    model = ModelRecord("m", "m.model", "aa")
    assert different_models({"m": model}, [model, ModelRecord("n", "n.model", "bb")]) == []


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (Structure(np.array([11, 35]), CUBE.positions, CUBE.cell), "archive 1 of Z=11, 1 of Z=17, now 1 "),
        (Structure(CUBE.numbers, CUBE.positions * 1.02, CUBE.cell * 1.02), "archive a cell of 64 A^3, now 67.9173 A^3"),
        (Structure(CUBE.numbers, CUBE.positions, CUBE.cell[::-1]), "other lattice vectors, now different by up to 4 A"),
        (Structure(CUBE.numbers[::-1], CUBE.positions, CUBE.cell), "atoms in another order"),
        (Structure(CUBE.numbers, CUBE.positions + 1e-9, CUBE.cell), "other positions, now different by up to 1e-09 A"),
    ],
)
def test_a_changed_structure_says_how(now, words):
    assert contrast(now).startswith("material salt: archive ")
    assert words in contrast(now)


def test_a_structure_that_cannot_be_read_any_more_still_differs():
    def lost(key: str) -> Structure:
        raise ArchiveError("dropped")

    (difference,) = different_materials({"salt": "0"}, [record(CUBE)], lost)
    assert "another structure" in str(difference)


def test_models_differ_by_file_or_head():
    stored = {"m": ModelRecord("m", "m.model", "aa")}
    (sha256,) = different_models(stored, [ModelRecord("m", "m.model", "bb")])
    (head,) = different_models(stored, [ModelRecord("m", "m.model", "aa", "omat")])
    assert str(sha256) == "model m: sha256: archive 'aa', now 'bb'"
    assert str(head) == "model m: head: archive '', now 'omat'"


def test_many_differences_are_counted_in_one_line():
    differences = different_settings({}, {f"s{i}": "1" for i in range(7)})
    text = refusal(Path("a.h5"), differences)
    assert "s4: archive unset, now 1; and 2 more" in text and "s5" not in text and "\n" not in text
