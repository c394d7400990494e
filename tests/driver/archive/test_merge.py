"""Archives of one campaign become one: what fits together is kept, what does not is named."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
from archive_samples import (
    HEADER,
    assert_result_stored,
    attempt,
    campaign,
    displace_result,
    dynamics_result,
    failure,
    material,
    model,
    new_archive,
    relax_result,
)
from crash_disk import FailingStorage, QuickStorage
from damage import address_of, flip

from driver.archive.drop import drop_damaged
from driver.archive.merge import merge
from driver.archive.reader import open_archive
from driver.archive.records import (
    ArchiveError,
    Array,
    Attempt,
    RefusedMaterial,
    StorageError,
    Structure,
    TaskKey,
    TaskResult,
    TaskState,
)
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter


def make(path: Path, attempts: Iterable[Attempt], materials: Sequence[str] = ("A", "B"), models: str = "mn") -> Path:
    """An archive with some attempts, a commit each."""
    path.parent.mkdir(exist_ok=True)
    with ArchiveWriter.create(path, HEADER, storage=QuickStorage()) as writer:
        writer.add_materials([material(key) for key in materials])
        writer.add_models([model(key) for key in models])
        for item in attempts:
            writer.commit([item])
    return path


def chain(key: str, segments: int, start: int = 0) -> list[Attempt]:
    """Segments of a trajectory."""
    return [attempt(dynamics_result(key, "m", segment)) for segment in range(start, segments)]


def relax(key: str, number: int = 0) -> Attempt:
    """A relaxation; another number gives another result."""
    return attempt(relax_result(key, "m", number))


def changed(item: Attempt) -> Attempt:
    """The same task with a result that differs in one number."""
    result = item.outcome
    assert isinstance(result, TaskResult)
    arrays = dict(result.arrays)
    name = next(n for n, array in arrays.items() if not isinstance(array.value, str) and array.value.dtype.kind == "f")
    arrays[name] = dataclasses.replace(arrays[name], value=np.asarray(arrays[name].value) + 1)
    return dataclasses.replace(item, outcome=dataclasses.replace(result, arrays=arrays))


def assert_holds(path: Path, attempts: Sequence[Attempt]) -> None:
    """The archive is intact and has these results, and no other."""
    assert verify(path) == []
    done = {item.key: item.outcome for item in attempts}
    with open_archive(path) as view:
        assert {key for key, state in view.task_states().items() if state.status == "done"} == done.keys()
        tables = {stage: view.table(stage) for stage in ("relax", "displace", "dynamics")}
        assert sum(len(table["task"]) for table in tables.values()) == len(done)
        for result in done.values():
            assert isinstance(result, TaskResult)
            assert_result_stored(view, result, tables[result.key.stage])


def test_two_halves_of_a_campaign(tmp_path: Path) -> None:
    """Each machine had its materials; with other rows in other orders."""
    first = [relax("A"), *chain("A", 2)]
    second = [relax("C"), relax("B"), attempt(displace_result("B", "m")), *chain("B", 3), *chain("C", 1)]
    a, b = make(tmp_path / "a.h5", first), make(tmp_path / "b.h5", second, ("C", "B"), "nm")
    merged = merge([a, b], tmp_path / "c.h5")
    assert (merged.tasks, merged.differing, merged.left_out, merged.damaged) == (10, (), (), ())
    assert_holds(tmp_path / "c.h5", [*first, *second])
    with open_archive(tmp_path / "c.h5") as view:
        assert list(view.materials()) == ["A", "B", "C"]
        assert list(view.models()) == ["m", "n"]
        assert view.materials()["C"].descriptors == material("C").descriptors


def test_the_campaign_goes_on_from_the_merged_archive(tmp_path: Path) -> None:
    a = make(tmp_path / "a.h5", [relax("A"), *chain("A", 2)])
    b = make(tmp_path / "b.h5", [relax("B"), *chain("B", 1)])
    merge([a, b], tmp_path / "c.h5")
    rest = [*chain("A", 4, 2), *chain("B", 4, 1), attempt(displace_result("A", "m"))]
    with ArchiveWriter.open(tmp_path / "c.h5") as writer:
        assert writer.add_materials([material("A"), material("B")]) == 0
        assert writer.add_models([model("m"), model("n")]) == 0
        for item in rest:
            assert writer.commit([item]) == 1
    assert_holds(tmp_path / "c.h5", [relax("A"), relax("B"), *chain("A", 4), *chain("B", 4), rest[-1]])


def test_one_archive_merged_alone_is_the_same(tmp_path: Path) -> None:
    commits = campaign(segments=2)
    with new_archive(tmp_path / "a.h5") as writer:
        for commit in commits:
            writer.commit(commit)
        writer.requeue_quarantined()
    merge([tmp_path / "a.h5"], tmp_path / "c.h5")
    with open_archive(tmp_path / "a.h5") as one, open_archive(tmp_path / "c.h5") as other:
        assert one.header == other.header
        assert one.models() == other.models()
        assert dict(one.task_states()) == dict(other.task_states())
        columns, again = one.table("tasks"), other.table("tasks")
        order = np.lexsort((columns["finished_s"],))
        for name in columns:
            assert sorted(map(str, columns[name][order])) == sorted(map(str, again[name]))
        assert {(row.key, row.attempt, row.traceback) for row in one.failures()} == {
            (row.key, row.attempt, row.traceback) for row in other.failures()
        }
        items = one.group("A", "m", "dynamics"), other.group("A", "m", "dynamics")
        assert items[0]["replica_0/particles/all/velocity/step"] == items[0]["replica_0/particles/all/force/step"]
        assert items[1]["replica_0/particles/all/velocity/step"] == items[1]["replica_0/particles/all/force/step"]


def test_done_beats_failed_beats_nothing(tmp_path: Path) -> None:
    keys = [TaskKey(name, "m", "relax") for name in "ABCD"]
    names = ("A", "B", "C", "D")
    here = [attempt(failure(keys[0]), 1), attempt(failure(keys[0]), 2, True), relax("B"), attempt(failure(keys[2]))]
    there = [relax("A"), attempt(failure(keys[1])), attempt(failure(keys[2]), 3, True), attempt(failure(keys[3]))]
    a, b = make(tmp_path / "a.h5", here, names), make(tmp_path / "b.h5", there, names)
    merged = merge([a, b], tmp_path / "c.h5")
    assert (merged.tasks, merged.failed, merged.quarantined) == (2, 1, 1)
    with open_archive(tmp_path / "c.h5") as view:
        states = view.task_states()
        assert [states[key].status for key in keys] == ["done", "done", "quarantined", "failed"]
        assert sorted((row.key, row.attempt) for row in view.failures()) == sorted(
            (item.key, item.number) for item in (*here, *there) if not isinstance(item.outcome, TaskResult)
        )
        assert len(view.rows("tasks")) == len(here) + len(there)
        tasks = view.rows("tasks")
        for row in view.rows("failures"):
            assert tasks[row["task"]]["attempt"] == row["attempt"]
            assert tasks[row["task"]]["material"] == row["material"]


def test_archives_with_a_common_past(tmp_path: Path) -> None:
    """A copy was continued elsewhere: what both have is there once, attempts too."""
    past = [attempt(failure(TaskKey("A", "m", "relax"))), attempt(relax_result("A", "m"), 2), *chain("A", 2)]
    a = make(tmp_path / "a.h5", past)
    (tmp_path / "b.h5").write_bytes(a.read_bytes())
    with ArchiveWriter.open(a) as one, ArchiveWriter.open(tmp_path / "b.h5") as other:
        one.commit([attempt(displace_result("A", "m"))])
        for item in chain("A", 5, 2):
            other.commit([item])
    merged = merge([a, tmp_path / "b.h5"], tmp_path / "c.h5")
    assert merged.differing == () and merged.left_out == ()
    assert_holds(tmp_path / "c.h5", [past[1], attempt(displace_result("A", "m")), *chain("A", 5)])
    with open_archive(tmp_path / "c.h5") as view:
        assert len(view.rows("tasks")) == 8
        assert len(view.failures()) == 1


def test_different_results_of_the_same_work(tmp_path: Path) -> None:
    """The first is taken and the difference told."""
    a = make(tmp_path / "a.h5", [relax("A"), attempt(displace_result("A", "m"))])
    b = make(tmp_path / "b.h5", [relax("A"), changed(attempt(displace_result("A", "m"))), relax("B")])
    merged = merge([a, b], tmp_path / "c.h5")
    assert merged.differing == (TaskKey("A", "m", "displace"),) and merged.left_out == ()
    assert_holds(tmp_path / "c.h5", [relax("A"), attempt(displace_result("A", "m")), relax("B")])
    merge([b, a], tmp_path / "d.h5")
    assert_holds(tmp_path / "d.h5", [relax("A"), changed(attempt(displace_result("A", "m"))), relax("B")])


def test_results_on_different_relaxations_are_never_mixed(tmp_path: Path) -> None:
    """The relaxation with most built on it is taken; what builds on the other is left out."""
    here = [relax("A"), attempt(displace_result("A", "m"))]
    there = [relax("A", 1), *chain("A", 3)]
    merged = merge([make(tmp_path / "a.h5", here), make(tmp_path / "b.h5", there)], tmp_path / "c.h5")
    assert merged.differing == (TaskKey("A", "m", "relax"),)
    assert merged.left_out == (TaskKey("A", "m", "displace"),)
    assert_holds(tmp_path / "c.h5", there)


def test_a_trajectory_comes_whole_from_one_archive(tmp_path: Path) -> None:
    """Segments that do not continue each other are not put together."""
    here = [relax("A"), *chain("A", 2), attempt(displace_result("A", "m"))]
    there = [relax("A"), *map(changed, chain("A", 4))]
    merged = merge([make(tmp_path / "a.h5", here), make(tmp_path / "b.h5", there)], tmp_path / "c.h5")
    assert merged.differing == tuple(TaskKey("A", "m", "dynamics", segment) for segment in range(2))
    assert_holds(tmp_path / "c.h5", [*there, here[-1]])


def test_damaged_results_are_taken_from_the_other(tmp_path: Path) -> None:
    work = [relax("A"), *chain("A", 3), attempt(displace_result("A", "m"))]
    a, b = make(tmp_path / "a.h5", work), make(tmp_path / "b.h5", work)
    with h5py.File(a, "r+") as plain:
        plain["materials/A/m/dynamics/replica_0/particles/all/force/value"][7] += 1
        plain["materials/A/m/displace/d0.0100/forces"][0] += 1
    merged = merge([a, b], tmp_path / "c.h5")
    expected = [TaskKey("A", "m", "displace"), *(TaskKey("A", "m", "dynamics", segment) for segment in (1, 2))]
    assert sorted(merged.damaged) == [(a, key) for key in sorted(expected)]
    assert merged.left_out == ()
    assert_holds(tmp_path / "c.h5", work)


@pytest.mark.parametrize("place", ["A/m/dynamics", "A/m", "A/m/dynamics/replica_0/state/step"])
def test_unreadable_results_are_left_behind(tmp_path: Path, place: str) -> None:
    """A merge of one archive alone keeps all that is intact."""
    work = [relax("A"), *chain("A", 3), relax("B"), *chain("B", 3)]
    a = make(tmp_path / "a.h5", work)
    flip(a, address_of(a, f"materials/{place}") + 20)
    merged = merge([a], tmp_path / "c.h5")
    lost = 4 if place == "A/m" else 3
    assert len(merged.damaged) + len(merged.left_out) == lost
    assert_holds(tmp_path / "c.h5", [*work[:4][: 4 - lost], *work[4:]])


def test_dropped_tasks_are_not_done(tmp_path: Path) -> None:
    work = [relax("A"), *chain("A", 3)]
    a = make(tmp_path / "a.h5", work)
    with h5py.File(a, "r+") as plain:
        plain["materials/A/m/dynamics/replica_0/particles/all/force/value"][7] += 1
    drop_damaged(a)
    merge([a], tmp_path / "c.h5")
    assert_holds(tmp_path / "c.h5", work[:2])
    with open_archive(tmp_path / "c.h5") as view:
        assert view.task_states()[TaskKey("A", "m", "dynamics", 1)] == TaskState("failed", 0)
        assert [row.exception for row in view.failures()] == ["DamagedResult"]


def test_a_running_campaign_may_be_merged(tmp_path: Path) -> None:
    """What its writer has committed so far, also what still stands in the journal."""
    with new_archive(tmp_path / "a.h5") as writer:
        for item in [relax("A"), *chain("A", 3)]:
            writer.commit([item])
        merge([tmp_path / "a.h5"], tmp_path / "c.h5")
        writer.commit(chain("A", 4, 3))
    assert_holds(tmp_path / "c.h5", [relax("A"), *chain("A", 3)])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("c.h5.")]


def with_header(path: Path, **changes: object) -> Path:
    ArchiveWriter.create(path, dataclasses.replace(HEADER, **changes), storage=QuickStorage()).close()
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"physics": {"dynamics.temperature_K": "400.0"}}, "dynamics.temperature_K is 300.0, and 400.0"),
        ({"physics": {**HEADER.physics, "relax.fmax_eV_A": "1"}}, "relax.fmax_eV_A is unset, and 1"),
        ({"seed": 8}, "seed is 7, and 8"),
    ],
)
def test_other_settings_are_refused_and_named(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    a, b = make(tmp_path / "a.h5", []), with_header(tmp_path / "b.h5", **changes)
    with pytest.raises(ArchiveError) as error:
        merge([a, b], tmp_path / "c.h5")
    assert f"{a} and {b} are of different campaigns: {words}." in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_other_structures_and_models_are_refused_and_named(tmp_path: Path) -> None:
    a = make(tmp_path / "a.h5", [])
    other = material("B").structure
    with ArchiveWriter.create(tmp_path / "b.h5", HEADER) as writer:
        structure = Structure(other.numbers, other.positions + 1e-9, other.cell)
        writer.add_materials([dataclasses.replace(material("B"), structure=structure)])
    with pytest.raises(ArchiveError, match=r"material B has one structure in .*a\.h5 and another in .*b\.h5"):
        merge([a, tmp_path / "b.h5"], tmp_path / "c.h5")
    with ArchiveWriter.create(tmp_path / "d.h5", HEADER) as writer:
        writer.add_models([dataclasses.replace(model("m"), sha256="other")])
    with pytest.raises(ArchiveError, match=r"model m: sha256 is 'm-sha256' in .*a\.h5 and 'other' in .*d\.h5"):
        merge([a, tmp_path / "d.h5"], tmp_path / "c.h5")


def test_header_and_refused_materials(tmp_path: Path) -> None:
    a = with_header(tmp_path / "a.h5", versions={"numpy": "2", "torch": "2.5"}, created="2026-02")
    b = with_header(tmp_path / "b.h5", versions={"numpy": "2", "torch": "2.6"}, created="2026-01", campaign="other")
    with ArchiveWriter.open(a) as writer:
        writer.add_materials([material("A")])
        writer.set_refused([RefusedMaterial("X", "x.cif", "no")])
    with ArchiveWriter.open(b) as writer:
        writer.set_refused([RefusedMaterial("A", "a.cif", "no"), RefusedMaterial("X", "x.cif", "no")])
    merge([a, b], tmp_path / "c.h5")
    with open_archive(tmp_path / "c.h5") as view:
        assert view.header.campaign == "test" and view.header.created == "2026-01"
        assert view.header.versions == {"numpy": "2", "torch": "2.5, 2.6"}
        assert view.header.config_yaml == HEADER.config_yaml
        assert view.refused() == [RefusedMaterial("X", "x.cif", "no")]
    assert verify(tmp_path / "c.h5") == []


def test_a_structure_damaged_here_is_taken_from_there(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a.h5", [relax("A")]), make(tmp_path / "b.h5", [])
    with h5py.File(a, "r+") as plain:
        plain["materials/A/structure/positions"][0, 0] += 1
    merge([a, b], tmp_path / "c.h5")
    assert_holds(tmp_path / "c.h5", [relax("A")])
    with pytest.raises(ArchiveError, match=r"the structure of A in .*a\.h5 is damaged"):
        merge([a], tmp_path / "d.h5")


def test_targets_and_sources_that_cannot_be(tmp_path: Path) -> None:
    a = make(tmp_path / "a.h5", [])
    with pytest.raises(ArchiveError, match="exists already"):
        merge([a], a)
    with pytest.raises(ArchiveError, match="named twice"):
        merge([a, tmp_path / "." / "a.h5"], tmp_path / "c.h5")
    with pytest.raises(ArchiveError, match="no such archive"):
        merge([a, tmp_path / "x.h5"], tmp_path / "c.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_interrupted_merges_leave_nothing(tmp_path: Path) -> None:
    """A full disk in the middle; and what a killed merge has left is removed by the next."""
    work = [relax("A"), *chain("A", 3)]
    a = make(tmp_path / "a.h5", work)
    refused = 0
    for budget in range(1_000, 200_000, 15_000):
        try:
            merge([a], tmp_path / "c.h5", storage=FailingStorage(budget))
        except StorageError as error:
            refused += 1
            assert "no space left" in str(error)
            assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]
        (tmp_path / "c.h5").unlink(missing_ok=True)
    assert refused > 3
    (tmp_path / "c.h5.part").write_bytes(b"half an archive")
    (tmp_path / "c.h5.part.journal").write_bytes(b"its journal")
    merge([a], tmp_path / "c.h5")
    assert_holds(tmp_path / "c.h5", work)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "c.h5"]


def test_memory_is_bounded_by_a_task(tmp_path: Path) -> None:
    """Ten times more segments take no more memory."""
    peaks = []
    for segments in (2, 20):
        with new_archive(tmp_path / f"{segments}.h5", ("A",), QuickStorage()) as writer:
            writer.commit([relax("A")])
            for segment in range(segments):
                result = dynamics_result("A", "m", segment)
                large = {"large": Array(np.random.default_rng(segment).random((50, 4000)), "eV", True)}
                writer.commit([attempt(dataclasses.replace(result, arrays={**result.arrays, **large}))])
        tracemalloc.start()
        merge([tmp_path / f"{segments}.h5"], tmp_path / f"merged-{segments}.h5")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert verify(tmp_path / f"merged-{segments}.h5") == []
    assert peaks[1] < peaks[0] + 2_000_000 < 20 * 1_600_000
