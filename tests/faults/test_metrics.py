"""Damage costs the material and model concerned, and no other."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from archive_samples import campaign, new_archive
from damage import address_of, first_byte, flip

from analysis.reduce import reduce_archive
from driver.archive.drop import drop_damaged


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metrics") / "archive.h5"
    with new_archive(path) as writer:
        for commit in campaign(segments=2):
            writer.commit(commit)
    return path


def rows(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """The metrics table as texts, by material and model."""
    text = reduce_archive(path).table.astype(str).to_json(orient="records", double_precision=15)
    table = json.loads(text.replace(json.dumps(str(path))[1:-1].replace("/", "\\/"), "ARCHIVE"))
    return {(row["material"], row["model"]): row for row in table}


def in_data(path: Path) -> None:
    with h5py.File(path, "r+") as plain:
        plain["materials/A/m/dynamics/replica_0/particles/all/force/value"][3] += 1


def in_metadata(path: Path) -> None:
    flip(path, address_of(path, "materials/A/m/dynamics") + 20)


def in_all_of_the_pair(path: Path) -> None:
    flip(path, address_of(path, "materials/A/m") + 20)


def in_the_structure(path: Path) -> None:
    flip(path, address_of(path, "materials/A/structure") + 20)


def in_a_stage_table(path: Path) -> None:
    with h5py.File(path) as plain:
        at = first_byte(plain["tables/dynamics"], 0)
    flip(path, at + 30)


@pytest.mark.parametrize("damage", [in_data, in_metadata, in_all_of_the_pair, in_a_stage_table])
def test_the_pair_is_reported_and_the_others_reduced(
    intact: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = Path(shutil.copy(intact, tmp_path / "archive.h5"))
    damage(path)
    expected, found = rows(intact), rows(path)
    assert "damaged, see `driver verify`: A / m / " in found["A", "m"]["failure"]
    assert "damaged" not in expected["A", "m"]["failure"]
    assert {pair: row for pair, row in found.items() if pair != ("A", "m")} == {
        pair: row for pair, row in expected.items() if pair != ("A", "m")
    }
    if damage in (in_data, in_metadata):
        assert found["A", "m"]["energy_per_atom_eV"] == expected["A", "m"]["energy_per_atom_eV"], "it is relaxed"


def test_an_unreadable_structure_costs_nothing(intact: Path, tmp_path: Path) -> None:
    """Reductions start from relaxed structures."""
    path = Path(shutil.copy(intact, tmp_path / "archive.h5"))
    in_the_structure(path)
    assert rows(path) == rows(intact)


def test_dropped_tasks_are_missing_not_damaged(intact: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(intact, tmp_path / "archive.h5"))
    in_data(path)
    drop_damaged(path)
    row = rows(path)["A", "m"]
    assert row["dynamics_status"] == "failed"
    assert "dynamics: DamagedResult: dropped: what is stored does not have its checksum" in row["failure"]
