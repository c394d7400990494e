"""Damaged tasks are dropped with what builds on them, computed again, and everything else stays as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from archive_samples import assert_result_stored, attempt, campaign, material, model, new_archive
from damage import address_of, first_byte, flip

from driver.archive.drop import LOST, Dropped, drop_damaged
from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, Attempt, TaskKey, TaskResult
from driver.archive.schema import ROW_CHECKSUM, TABLES
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter

COMMITS = campaign(segments=3)
RESULTS = {item.key: item for commit in COMMITS for item in commit if isinstance(item.outcome, TaskResult)}


def key(material: str, stage: str, segment: int = 0) -> TaskKey:
    return TaskKey(material, "m", stage, segment)


CHAIN = [key("A", "dynamics", segment) for segment in range(3)]
ALL_OF_A = {key("A", "relax"), key("A", "displace"), *CHAIN}


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drop") / "archive.h5"
    with new_archive(path) as writer:
        for commit in COMMITS:
            writer.commit(commit)
    return path


@pytest.fixture
def archive(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(intact, tmp_path / "archive.h5"))


def drop_and_run(path: Path) -> tuple[Dropped, set[TaskKey]]:
    """Drop, check what is left, do again what is no longer done; return what was dropped and what was done again."""
    before = verify(path)
    dropped = drop_damaged(path)
    assert list(dropped.findings) == before
    assert dropped.remaining == ()
    with open_archive(path) as view:
        done = {task for task, state in view.task_states().items() if state.status == "done"}
        tables = {stage: view.table(stage) for stage in ("relax", "displace", "dynamics")}
        for task in done:
            assert_result_stored(view, RESULTS[task].outcome, tables[task.stage])
        assert sum(len(columns["task"]) for columns in tables.values()) == len(done)
        for task in dropped.tasks:
            assert view.task_states()[task].attempts == 0
    assert [f for f in verify(path) if not f.material] == []
    missing = RESULTS.keys() - done
    with ArchiveWriter.open(path) as writer:
        writer.add_materials([material("A"), material("B")])
        writer.add_models([model("m"), model("n")])
        for task, item in RESULTS.items():
            if task in missing:
                assert writer.commit([item]) == 1
    with open_archive(path) as view:
        tables = {stage: view.table(stage) for stage in ("relax", "displace", "dynamics")}
        for item in RESULTS.values():
            assert_result_stored(view, item.outcome, tables[item.key.stage])
        steps = view.read_array("A", "m", "dynamics", "replica_0/particles/all/position/step")
        assert len(steps) == 15 and np.all(np.diff(steps) == 10)
    assert verify(path) == []
    return dropped, set(missing)


def test_nothing_damaged_nothing_changed(archive: Path, intact: Path) -> None:
    assert drop_damaged(archive) == Dropped(())
    assert archive.read_bytes() == intact.read_bytes()


@pytest.mark.parametrize(
    ("dataset", "row", "expected"),
    [
        ("A/m/relax/positions", None, ALL_OF_A),
        ("A/m/displace/d0.0100/force_constants", None, {key("A", "displace")}),
        ("A/m/dynamics/replica_0/particles/all/position/value", 0, set(CHAIN)),
        ("A/m/dynamics/replica_0/particles/all/force/value", 7, set(CHAIN[1:])),
        ("A/m/dynamics/replica_0/state/velocity", 2, {CHAIN[2]}),
    ],
)
def test_damaged_data(archive: Path, dataset: str, row: int | None, expected: set[TaskKey]) -> None:
    with h5py.File(archive, "r+") as plain:
        item = plain[f"materials/{dataset}"]
        if row is None:
            item[(0,) * item.ndim] += 1
        else:
            item[row] += 1
    dropped, again = drop_and_run(archive)
    assert set(dropped.tasks) == again == expected


@pytest.mark.parametrize(
    ("place", "expected", "structures"),
    [
        ("A/m/dynamics", set(CHAIN), ()),
        ("A/m/dynamics/replica_0/state/position", set(CHAIN), ()),
        ("A/m/displace/d0.0100/forces", {key("A", "displace")}, ()),
        ("A/m/relax", ALL_OF_A, ()),
        ("A/m", ALL_OF_A, ()),
        ("A/structure", set(), ("A",)),
        ("A", ALL_OF_A, ("A",)),
    ],
)
def test_unreadable_metadata(archive: Path, place: str, expected: set[TaskKey], structures: tuple[str, ...]) -> None:
    """HDF5 cannot delete what it cannot read; it is put aside."""
    flip(archive, address_of(archive, f"materials/{place}") + 20)
    with h5py.File(archive) as plain, pytest.raises(KeyError):
        plain[f"materials/{place}"]
    dropped, again = drop_and_run(archive)
    assert set(dropped.tasks) == again == expected
    assert dropped.structures == structures
    with h5py.File(archive) as plain:
        assert list(plain[LOST]) == ["0"]
        assert set(plain["materials"]) == {"A", "B"}


def test_an_unreadable_chunk_index_in_mid_chain(archive: Path) -> None:
    """Of a trajectory that cannot even be cut, everything is computed again."""
    with h5py.File(archive) as plain:
        dataset = plain["materials/A/m/dynamics/replica_0/particles/all/velocity/value"]
        chunks = sorted(dataset.id.get_chunk_info(n).byte_offset for n in range(dataset.id.get_num_chunks()))
        start = address_of(archive, dataset.name)
    data = archive.read_bytes()
    index = data.find(b"EAHD", start)  # header of the extensible array that finds the chunks
    assert index > 0 and index not in chunks
    flip(archive, index + 12)
    dropped, again = drop_and_run(archive)
    assert set(dropped.tasks) == again == set(CHAIN)


DAMAGED_ROWS = {
    ("tasks", 1): ALL_OF_A,
    ("tasks", 6): set(CHAIN),
    ("tasks", -1): set(),
    ("relax", 0): ALL_OF_A,
    ("displace", 1): {key("B", "displace")},
    ("dynamics", 2): set(CHAIN[1:]),
}
"""Table and row -> what has to be computed again."""


@pytest.mark.parametrize("column", ["task", "status", "material", "segment", "checksum", "row_crc32"])
@pytest.mark.parametrize(("table", "row"), DAMAGED_ROWS)
def test_damaged_rows(archive: Path, table: str, row: int, column: str) -> None:
    """A row that is damaged counts as not there, in every reader; afterwards it is gone."""
    if column not in (TABLES[table].names or ()):
        column = "rank" if table == "tasks" else ROW_CHECKSUM
    kind, offset = TABLES[table].fields[column][:2]
    with h5py.File(archive) as plain:
        dataset = plain[f"tables/{table}"]
        at = first_byte(dataset, row % len(dataset)) + offset
    flip(archive, at + kind.itemsize - 1)
    with open_archive(archive) as view:
        assert all(task in RESULTS or task.model == "n" for task in view.task_states())
        assert len(view.table("failures")["task"]) == 3
    dropped, again = drop_and_run(archive)
    assert any(finding.table == table for finding in dropped.findings)
    assert again == DAMAGED_ROWS[table, row]
    own = {("tasks", 1): {key("A", "relax")}, ("tasks", 6): {CHAIN[0]}}.get((table, row), set())
    assert set(dropped.tasks) == again - own, "a task without its row was not even known to be done"


@pytest.mark.parametrize("table", ["relax", "dynamics", "failures"])
def test_an_unreadable_table(archive: Path, table: str) -> None:
    """All tasks of a stage whose scalars are lost are computed again."""
    flip(archive, address_of(archive, f"tables/{table}") + 20)
    dropped, again = drop_and_run(archive)
    assert set(dropped.tasks) == again
    stages = {"relax": {"relax", "displace", "dynamics"}, "dynamics": {"dynamics"}, "failures": set()}[table]
    assert again == {task for task in RESULTS if task.stage in stages}


def test_a_damaged_traceback_costs_a_row_only(archive: Path) -> None:
    with h5py.File(archive) as plain:
        at = first_byte(plain["tables/failures"], 0) + TABLES["failures"].fields["rank"][1]
    flip(archive, at)
    dropped, again = drop_and_run(archive)
    assert not dropped.tasks and not again
    with open_archive(archive) as view:
        assert len(view.failures()) == 2


def test_reasons_are_kept_as_failures(archive: Path) -> None:
    with h5py.File(archive, "r+") as plain:
        plain["materials/A/m/dynamics/replica_0/particles/all/force/value"][7] += 1
    drop_damaged(archive)
    with open_archive(archive) as view:
        row = view.failures()[-1]
        assert (row.key, row.exception) == (CHAIN[1], "DamagedResult")
        assert row.message == "dropped: what is stored does not have its checksum"
        assert view.failures()[-2].exception == "RuntimeError", "dependents have no failure of their own"


def test_what_is_no_task_remains(archive: Path) -> None:
    """The header and the lists of materials and models cannot be computed again."""
    with h5py.File(archive, "r+") as plain:
        plain["header"].attrs["seed"] = 8
    dropped = drop_damaged(archive)
    assert [finding.where for finding in dropped.remaining] == ["header"]
    assert dropped.tasks == ()


def test_refused_while_a_writer_is_there(archive: Path) -> None:
    with ArchiveWriter.open(archive), pytest.raises(ArchiveError, match="is being written by process"):
        drop_damaged(archive)


@pytest.mark.parametrize("damage", [lambda f: f["tables/tasks"], lambda f: f["tables"], lambda f: f["materials"]])
def test_the_root_of_everything_cannot_be_dropped(
    archive: Path, damage: Callable[[h5py.File], h5py.Group | h5py.Dataset]
) -> None:
    with h5py.File(archive) as plain:
        place = damage(plain).name
    flip(archive, address_of(archive, place) + 20)
    with pytest.raises(ArchiveError) as error:
        drop_damaged(archive)
    assert "\n" not in str(error.value) and str(archive) in str(error.value)


def test_a_second_damage_later(archive: Path) -> None:
    """What has been put aside does not stand in the way of the next time."""
    flip(archive, address_of(archive, "materials/A/m/dynamics") + 20)
    drop_and_run(archive)
    flip(archive, address_of(archive, "materials/A/m/dynamics") + 20)
    drop_and_run(archive)
    with h5py.File(archive) as plain:
        assert list(plain[LOST]) == ["0", "1"]


def test_attempts_count_anew(archive: Path) -> None:
    with h5py.File(archive, "r+") as plain:
        plain["materials/A/m/relax/positions"][0, 0] += 1
    drop_damaged(archive)
    again: Attempt = attempt(RESULTS[key("A", "relax")].outcome, 1)
    with ArchiveWriter.open(archive) as writer:
        writer.commit([again])
        assert writer.view.task_states()[again.key].attempts == 1
