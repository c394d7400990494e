"""What readers say of files that are not what they should be, and of tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from archive_samples import attempt, campaign, failure, kill, material, new_archive, relax_result

from driver.archive.reader import last_of_each, open_archive
from driver.archive.records import ArchiveError, RefusedMaterial, Structure, TaskKey
from driver.archive.schema import FORMAT_VERSION, TABLES, fill_row_checksums
from driver.archive.writer import ArchiveWriter


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive.h5"
    with new_archive(path) as writer:
        for commit in campaign():
            writer.commit(commit)
    return path


def with_version(path: Path, version: str) -> Path:
    with h5py.File(path, "r+") as plain:
        plain.attrs["format_version"] = version
    return path


def refusal(path: Path) -> str:
    """The one line with which both readers and writers refuse a file."""
    with pytest.raises(ArchiveError) as read:
        open_archive(path)
    with pytest.raises(ArchiveError):
        ArchiveWriter.open(path)
    assert "\n" not in str(read.value)
    assert not path.with_name(path.name + ".lock").exists()
    assert str(path) in str(read.value)
    return str(read.value)


def test_no_file(tmp_path: Path) -> None:
    assert "no such archive" in refusal(tmp_path / "missing.h5")


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder")


@pytest.mark.parametrize("data", [b"", b"not HDF5 at all\n" * 200])
def test_no_hdf5(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "text.h5"
    path.write_bytes(data)
    assert "not an HDF5 file" in refusal(path)
    assert path.read_bytes() == data
    assert [file.name for file in tmp_path.iterdir()] == ["text.h5"]


def test_hdf5_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["x"] = 1
    assert "no archive of Latdyn" in refusal(path)


def test_a_truncated_archive(archive: Path) -> None:
    with archive.open("r+b") as file:
        file.truncate(archive.stat().st_size // 2)
    assert "cannot be read" in refusal(archive)


def test_newer_major_version_is_refused(archive: Path) -> None:
    message = refusal(with_version(archive, "2.0"))
    assert "format 2.0" in message
    assert "update Latdyn" in message


def test_newer_minor_version_is_read_but_not_written(archive: Path) -> None:
    with_version(archive, "1.7")
    with open_archive(archive) as view:
        assert view.header.format_version == "1.7"
        assert len(view.task_states()) > 5
    with pytest.raises(ArchiveError, match=rf"writes {FORMAT_VERSION}: update"):
        ArchiveWriter.open(archive)


def test_a_killed_writers_commits_are_read(tmp_path: Path) -> None:
    path = tmp_path / "archive.h5"
    writer = new_archive(path)
    writer.commit([attempt(relax_result("A", "m"))])
    kill(writer)
    with open_archive(path) as view:
        assert TaskKey("A", "m", "relax") in view.task_states()


def test_a_damaged_journal_is_refused_with_a_way_out(tmp_path: Path) -> None:
    path = tmp_path / "archive.h5"
    writer = new_archive(path)
    for key in "AB":
        writer.commit([attempt(relax_result(key, "m"))])
    kill(writer)
    journal = path.with_name("archive.h5.journal")
    data = bytearray(journal.read_bytes())
    data[1500] ^= 1
    journal.write_bytes(data)
    message = refusal(path)
    assert "the journal is damaged at byte 1024" in message
    assert "move archive.h5.journal away" in message


def test_tables_as_columns(archive: Path) -> None:
    with open_archive(archive) as view:
        for name, dtype in TABLES.items():
            columns = view.table(name)
            assert list(columns) == list(dtype.names)[:-1]
        tasks = view.table("tasks")
        assert list(tasks["material"][:3]) == ["A", "A", "A"]
        assert list(tasks["stage"][:3]) == ["relax", "relax", "displace"]
        assert list(tasks["status"][:3]) == ["failed", "done", "done"]
        assert tasks["host"][0] == "node-Ü"
        assert view.table("relax")["converged"].dtype == bool
        with pytest.raises(ArchiveError, match="no table 'nothing': it has materials"):
            view.table("nothing")


def test_empty_tables(tmp_path: Path) -> None:
    path = tmp_path / "archive.h5"
    new_archive(path, ()).close()
    with open_archive(path) as view:
        assert view.task_states() == {}
        assert view.failures() == []
        assert view.refused() == []
        assert all(len(column) == 0 for name in ("tasks", "relax") for column in view.table(name).values())


def test_failures(archive: Path) -> None:
    with open_archive(archive) as view:
        first, *_, last = view.failures()
    assert (first.key, first.attempt, first.quarantined) == (TaskKey("A", "m", "relax"), 1, False)
    assert (first.exception, first.message) == ("RuntimeError", "exploded: 2e5 K")
    assert first.traceback == "Traceback ...\n  naïve\\0\n"
    assert (first.rank, first.host, first.device) == (3, "node-Ü", "cuda:0")
    assert (last.key, last.attempt, last.quarantined) == (TaskKey("A", "n", "relax"), 3, True)


def test_refused_materials_are_replaced_as_a_whole(archive: Path) -> None:
    for refused in ([RefusedMaterial("X", "x.cif", "no cell"), RefusedMaterial("Y", "y.cif", "empty")], []):
        with ArchiveWriter.open(archive) as writer:
            writer.set_refused(refused)
            assert writer.view.refused() == refused


def test_single_results(archive: Path) -> None:
    with open_archive(archive) as view:
        assert view.has("A", "m", "displace")
        assert view.has("A", "m", "displace", "d0.0100/forces")
        assert not view.has("A", "m", "displace", "d0.0200/forces")
        assert not view.has("A", "n", "displace")
        assert not view.has("X", "n", "displace")
        relaxed = view.relaxed("A", "m")
        assert isinstance(relaxed, Structure)
        np.testing.assert_array_equal(relaxed.positions, relax_result("A", "m").arrays["positions"].value)
        np.testing.assert_array_equal(view.structure("B").cell, material("B").structure.cell)
        assert view.read_text("A", "m", "displace", "d0.0100/phonopy_yaml").startswith("phonopy")
        assert view.group("A", "m", "relax")["forces"].attrs["units"] == "eV angstrom-1"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda view: view.read("A", "m", "relax", "nothing"), "A / m / relax has no dataset 'nothing'"),
        (lambda view: view.read("A", "m", "displace", "d0.0100"), "A / m / displace has no dataset 'd0.0100'"),
        (lambda view: view.read("A", "m", "displace", "x/y"), "A / m / displace has no dataset 'x/y'"),
        (lambda view: view.read("A", "n", "relax", "forces"), "A / n / relax is not done"),
        (lambda view: view.group("X", "m", "relax"), "X / m / relax is not done"),
        (lambda view: view.relaxed("A", "n"), "A / n / relax is not done"),
        (lambda view: view.structure("X"), "no material 'X'"),
        (lambda view: view.read_array("A", "m", "displace", "d0.0100/phonopy_yaml"), "is a text"),
        (lambda view: view.read_text("A", "m", "relax", "forces"), "is an array"),
    ],
)
def test_what_is_missing_is_named(archive: Path, call: object, message: str) -> None:
    with open_archive(archive) as view, pytest.raises(ArchiveError) as error:
        call(view)  # type: ignore[operator]
    assert message in str(error.value)


def test_the_last_row_of_each_task_counts() -> None:
    """Against a plain loop, on random rows, some of them damaged or tombstones."""
    rng = np.random.default_rng(0)
    rows = np.zeros(500, dtype=TABLES["tasks"])
    for name in ("material", "model", "stage", "segment"):
        rows[name] = rng.integers(0, 4, len(rows))
    rows["segment"][::50] = -1
    fill_row_checksums(rows)
    rows["material"][::7] += 1
    latest: dict[tuple[int, ...], int] = {}
    for number, row in enumerate(rows.tolist()):
        if number % 7 and number % 50:
            latest[row[:4]] = number
    assert list(last_of_each(rows)) == list(latest.values())


def test_a_copy_taken_after_closing_is_whole(archive: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    shutil.copy(archive, copy)
    with open_archive(copy) as view, open_archive(archive) as original:
        assert view.task_states() == original.task_states()
    assert failure  # the sample is what `campaign` commits first
