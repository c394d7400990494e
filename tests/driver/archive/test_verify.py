"""Every flipped byte of what is committed is found, and named."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import pytest
from archive_samples import attempt, campaign, dynamics_result, new_archive
from damage import first_byte, flip

from driver.archive.records import TaskKey
from driver.archive.schema import TABLES
from driver.archive.verify import verify

COMMITS = campaign(segments=3)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "archive.h5"
    with new_archive(path) as writer:
        for commit in COMMITS:
            writer.commit(commit)
    return path


def flipped(archive: Path, folder: Path, offset: int, bit: int = 3) -> Path:
    """Copy the archive with one bit changed."""
    path = folder / "flipped.h5"
    shutil.copy(archive, path)
    flip(path, offset, bit)
    return path


def test_an_intact_archive_has_no_findings(archive: Path) -> None:
    calls: list[tuple[int, int]] = []
    assert verify(archive, progress=lambda done, total: calls.append((done, total))) == []
    done = sum(1 for commit in COMMITS for item in commit if item.number and hasattr(item.outcome, "arrays"))
    assert calls[-1] == (done, done)


@pytest.mark.parametrize("segment", [0, 1, 2])
@pytest.mark.parametrize(
    "name",
    [
        "particles/all/position/value",
        "particles/all/force/value",
        "particles/all/velocity/time",
        "observables/kinetic_energy/value",
        "state/velocity",
    ],
)
def test_a_flipped_frame_names_the_segment(archive: Path, tmp_path: Path, name: str, segment: int) -> None:
    with h5py.File(archive) as plain:
        dataset = plain[f"materials/B/m/dynamics/replica_0/{name}"]
        rows = int(dataset.attrs["segment_rows"])
        offset = first_byte(dataset, (segment + 1) * rows - 1)
    (finding,) = verify(flipped(archive, tmp_path, offset))
    assert finding.key == TaskKey("B", "m", "dynamics", segment)
    assert str(finding).startswith(f"B / m / dynamics segment {segment}: ")


def test_a_flipped_array_names_the_task(archive: Path, tmp_path: Path) -> None:
    with h5py.File(archive) as plain:
        offset = first_byte(plain["materials/A/m/displace/d0.0100/force_constants"])
    (finding,) = verify(flipped(archive, tmp_path, offset + 100))
    assert finding.key == TaskKey("A", "m", "displace")


@pytest.mark.parametrize("table", ["tasks", "relax", "displace", "dynamics"])
def test_a_flipped_byte_in_a_table_names_row_and_task(archive: Path, tmp_path: Path, table: str) -> None:
    """Whatever the column."""
    with h5py.File(archive) as plain:
        dataset = plain[f"tables/{table}"]
        row, start = len(dataset) - 1, first_byte(dataset, len(dataset) - 1)
    for column, (_, offset) in TABLES[table].fields.items():
        findings = verify(flipped(archive, tmp_path, start + offset))
        assert any(finding.where.startswith(f"/tables/{table} row {row}") for finding in findings), column
        if column == "seconds":
            assert findings[0].key == COMMITS[-1][-1].key


def test_a_missing_dataset_is_found(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "archive.h5"
    shutil.copy(archive, path)
    with h5py.File(path, "r+") as plain:
        del plain["materials/A/m/relax/forces"]
        del plain["materials/B/m/displace"]
    assert {finding.key for finding in verify(path)} == {TaskKey("A", "m", "relax"), TaskKey("B", "m", "displace")}


def test_changed_units_are_found(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "archive.h5"
    shutil.copy(archive, path)
    with h5py.File(path, "r+") as plain:
        plain["materials/A/m/relax/forces"].attrs["units"] = "eV angstrom-2"
        plain["materials/B/m/dynamics/replica_0/particles/all/velocity/step"].attrs["more"] = 1
    expected = {TaskKey("A", "m", "relax"), TaskKey("B", "m", "dynamics", 0)}
    assert {finding.key for finding in verify(path)} == expected


def test_a_changed_structure_is_found(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "archive.h5"
    shutil.copy(archive, path)
    with h5py.File(path, "r+") as plain:
        plain["materials/A/structure/positions"][0, 0] += 1e-15
    assert [finding.where for finding in verify(path)] == ["A / structure"]


def test_a_changed_header_is_found(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "archive.h5"
    shutil.copy(archive, path)
    with h5py.File(path, "r+") as plain:
        plain["header"].attrs["seed"] = 8
    assert [finding.where for finding in verify(path)] == ["header"]


def test_in_parallel_and_while_being_written(tmp_path: Path) -> None:
    """Several processes give what one does, also on an archive whose newest commits stand in the journal."""
    path = tmp_path / "archive.h5"
    calls: list[tuple[int, int]] = []
    with new_archive(path) as writer:
        for segment in range(70):
            writer.commit([attempt(dynamics_result(key, "m", segment)) for key in "AB"])
        assert verify(path, workers=2, progress=lambda done, total: calls.append((done, total))) == []
    assert calls[-1] == (140, 140)
    with h5py.File(path) as plain:
        offset = first_byte(plain["materials/B/m/dynamics/replica_0/state/position"], 41)
    (finding,) = verify(flipped(path, tmp_path, offset), workers=2)
    assert finding.key == TaskKey("B", "m", "dynamics", 41)
