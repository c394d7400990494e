"""Archives of other versions of the format."""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import pytest
from archive_samples import assert_result_stored, attempt, campaign, dynamics_result

from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, TaskKey, TaskResult, TaskState
from driver.archive.schema import FORMAT_VERSION
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter

DATA = Path(__file__).parent / "data"
RESULTS = {item.key: item.outcome for c in campaign(("A",), 2) for item in c if isinstance(item.outcome, TaskResult)}


@pytest.fixture
def version_1_0(tmp_path: Path) -> Path:
    """Written by the first version: every stage, failures, a requeued task."""
    path = tmp_path / "archive.h5"
    path.write_bytes(gzip.decompress((DATA / "format-1.0.h5.gz").read_bytes()))
    return path


@pytest.mark.parametrize("own", ["1.0", "1.1", "1.12"])
def test_an_older_minor_version_is_read_and_continued(
    version_1_0: Path, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    monkeypatch.setattr("driver.archive.sources.FORMAT_VERSION", own)
    assert verify(version_1_0) == []
    with open_archive(version_1_0) as view:
        assert view.header.format_version == "1.0"
        states = view.task_states()
        assert {key for key, state in states.items() if state.status == "done"} == RESULTS.keys()
        assert states[TaskKey("A", "n", "relax")] == TaskState("failed", 0)
        tables = {stage: view.table(stage) for stage in ("relax", "displace", "dynamics")}
        for result in RESULTS.values():
            assert_result_stored(view, result, tables[result.key.stage])
        assert [row.exception for row in view.failures()] == ["RuntimeError"] * 2
    with ArchiveWriter.open(version_1_0) as writer:
        writer.commit([attempt(dynamics_result("A", "m", 2))])
    assert verify(version_1_0) == []
    with open_archive(version_1_0) as view:
        assert view.header.format_version == "1.0", "an archive keeps its version"


def change_version(path: Path, version: str) -> None:
    with h5py.File(path, "r+") as plain:
        plain.attrs["format_version"] = version


def test_a_newer_minor_version_is_read_but_not_written(version_1_0: Path) -> None:
    major, minor = map(int, FORMAT_VERSION.split("."))
    change_version(version_1_0, f"{major}.{minor + 1}")
    with open_archive(version_1_0) as view:
        assert len(view.task_states()) == 5
    with pytest.raises(ArchiveError, match="update Latdyn to write it"):
        ArchiveWriter.open(version_1_0)


def test_a_newer_minor_version_may_have_more_columns(version_1_0: Path) -> None:
    """Columns and tables that are not known here are no obstacle."""
    with h5py.File(version_1_0, "r+") as plain:
        old = plain["tables/models"]
        rows, names = old[()], old.dtype.names
        kind = [(name, old.dtype[name]) for name in names[:-1]] + [("parameters", "<i8"), (names[-1], "<u4")]
        del plain["tables/models"]
        new = plain.create_dataset("tables/models", shape=rows.shape, dtype=kind, chunks=(8,), maxshape=(None,))
        for number, row in enumerate(rows.tolist()):
            new[number] = (*row[:-1], 5, row[-1])
        plain.create_dataset("tables/more", data=[1, 2])
        plain.attrs["format_version"] = "1.7"
    with open_archive(version_1_0) as view:
        assert list(view.models()) == ["m", "n"]
        assert view.table("models")["parameters"].tolist() == [5, 5]


@pytest.mark.parametrize("version", ["2.0", "3.4"])
def test_a_newer_major_version_is_refused(version_1_0: Path, version: str) -> None:
    change_version(version_1_0, version)
    for function in (open_archive, ArchiveWriter.open, verify):
        with pytest.raises(ArchiveError, match=rf"has format {version}, this Latdyn reads 1\.x: update Latdyn"):
            function(version_1_0)


def test_a_version_that_is_none_is_refused(version_1_0: Path) -> None:
    change_version(version_1_0, "one")
    with pytest.raises(ArchiveError, match=r"archive\.h5"):
        open_archive(version_1_0)
