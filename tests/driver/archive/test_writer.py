"""The writer and what readers find."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest
from archive_samples import (
    HEADER,
    assert_stored,
    attempt,
    campaign,
    displace_result,
    dynamics_result,
    failure,
    kill,
    material,
    model,
    new_archive,
    relax_result,
)

from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, Array, TaskKey, TaskResult, TaskState
from driver.archive.schema import FORMAT_VERSION
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter

PATH = "runs/test/archive.h5"


def test_a_campaign_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / PATH
    commits = campaign()
    with new_archive(path) as writer:
        for commit in commits:
            assert writer.commit(commit) == len(commit)
        assert_stored(writer.view, commits)
    assert [file.name for file in path.parent.iterdir()] == ["archive.h5"]
    with open_archive(path) as view:
        assert_stored(view, commits)
        header = view.header
        assert (header.campaign, header.seed, header.physics, header.versions) == (
            "test",
            7,
            HEADER.physics,
            {"numpy": "2"},
        )
        assert header.format_version == FORMAT_VERSION
        assert header.created
    assert verify(path) == []


def test_reopened_after_each_commit(tmp_path: Path) -> None:
    """A campaign in many sessions gives the archive of one session."""
    path = tmp_path / PATH
    new_archive(path).close()
    commits = campaign()
    for commit in commits:
        with ArchiveWriter.open(path) as writer:
            writer.commit(commit)
    with open_archive(path) as view:
        assert_stored(view, commits)
    assert verify(path) == []


def test_materials_and_models_come_back(tmp_path: Path) -> None:
    path = tmp_path / PATH
    records = [material("Cs2AgBiBr6"), material("a b-ß")]
    with ArchiveWriter.create(path, HEADER) as writer:
        assert writer.add_materials(records) == 2
        assert writer.add_models([model("mace-mpa-0")]) == 1
    with open_archive(path) as view:
        assert view.models() == {"mace-mpa-0": model("mace-mpa-0")}
        stored = view.materials()
        assert list(stored) == ["Cs2AgBiBr6", "a b-ß"]
        for record in records:
            found = stored[record.key]
            assert dataclasses.replace(found, structure=record.structure) == record
            for name in ("numbers", "positions", "cell"):
                np.testing.assert_array_equal(getattr(found.structure, name), getattr(record.structure, name))
            np.testing.assert_array_equal(view.structure(record.key).positions, record.structure.positions)


def test_adding_again_changes_nothing(tmp_path: Path) -> None:
    with new_archive(tmp_path / PATH) as writer:
        assert writer.add_materials([material("B"), material("C"), material("C")]) == 1
        assert writer.add_models([model("m"), model("o"), model("o")]) == 1
        assert list(writer.view.materials()) == ["A", "B", "C"]
        assert list(writer.view.models()) == ["m", "n", "o"]


def test_changed_material_or_model_is_refused(tmp_path: Path) -> None:
    with new_archive(tmp_path / PATH) as writer:
        changed = dataclasses.replace(material("A"), structure=material("B").structure)
        with pytest.raises(ArchiveError, match=r"made with other inputs \(material A: archive .*, now .*\)"):
            writer.add_materials([material("C"), changed])
        with pytest.raises(ArchiveError, match=r"material D is given with two structures"):
            writer.add_materials([material("D"), dataclasses.replace(material("D"), structure=material("B").structure)])
        writer.commit([attempt(relax_result("A", "m"))])
        with pytest.raises(ArchiveError, match=r"model m: sha256: archive 'm-sha256', now 'other'"):
            writer.add_models([dataclasses.replace(model("m"), sha256="other")])
        with pytest.raises(ArchiveError, match=r"model m: head: archive '', now 'omat'"):
            writer.add_models([dataclasses.replace(model("m"), head="omat")])
        assert list(writer.view.materials()) == ["A", "B"]


def test_a_model_that_nothing_was_computed_with_gives_way_to_another_file(tmp_path: Path) -> None:
    right = dataclasses.replace(model("m"), file="right.model", sha256="other", head="omat")
    with new_archive(tmp_path / PATH) as writer:
        writer.commit([attempt(relax_result("A", "n"))])
        assert writer.add_models([right, model("n"), model("o")]) == 1
        with pytest.raises(ArchiveError, match=r"model n: sha256: archive"):
            writer.add_models(
                [dataclasses.replace(model("m"), sha256="third"), dataclasses.replace(model("n"), sha256="x")]
            )
        assert writer.view.models()["m"] == right
        writer.commit([attempt(relax_result("A", "m"))])
        with pytest.raises(ArchiveError, match=r"model m: sha256: archive"):
            writer.add_models([model("m")])
    with open_archive(tmp_path / PATH) as view:
        assert list(view.models()) == ["m", "n", "o"]
        assert view.models()["m"] == right
    assert verify(tmp_path / PATH) == []


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", "/", " a", "a\n", "tab\tkey", "structure"])
def test_unsafe_keys_are_refused(tmp_path: Path, key: str) -> None:
    with new_archive(tmp_path / PATH) as writer:
        with pytest.raises(ArchiveError, match="material key"):
            writer.add_materials([material("C"), dataclasses.replace(material("A"), key=key)])
        with pytest.raises(ArchiveError, match="model key"):
            writer.add_models([dataclasses.replace(model("m"), key=key)])
        assert list(writer.view.materials()) == ["A", "B"]
        assert list(writer.view.models()) == ["m", "n"]


def broken_results() -> list[tuple[str, TaskResult]]:
    good = relax_result("A", "m")
    less = {name: value for name, value in good.scalars.items() if name != "energy_eV"}
    numbers = good.arrays["numbers"]
    return [
        ("lacks energy_eV", dataclasses.replace(good, scalars=less)),
        ("no column for speed", dataclasses.replace(good, scalars={**good.scalars, "speed": 1.0})),
        ("plain relative path", dataclasses.replace(good, arrays={"../up": numbers})),
        ("plain relative path", dataclasses.replace(good, arrays={"/abs": numbers})),
        ("below another dataset", dataclasses.replace(good, arrays={"a": numbers, "a/b": numbers})),
        ("complex128", dataclasses.replace(good, arrays={"a": Array(np.ones(3, complex))})),
        ("attribute 'list'", dataclasses.replace(good, attributes={"forces": {"list": ["a", "b"]}})),
        ("no dataset of the result", dataclasses.replace(good, links={"b": "missing"})),
        ("X is not in", dataclasses.replace(good, key=TaskKey("X", "m", "relax"))),
        ("x is not in", dataclasses.replace(good, key=TaskKey("A", "x", "relax"))),
        ("no table for stage", dataclasses.replace(good, key=TaskKey("A", "m", "rescore"))),
        ("predecessor", dynamics_result("A", "m", 1)),
    ]


@pytest.mark.parametrize(("message", "result"), broken_results())
def test_a_result_that_does_not_fit_is_refused_whole(tmp_path: Path, message: str, result: TaskResult) -> None:
    with new_archive(tmp_path / PATH) as writer:
        with pytest.raises(ArchiveError, match=message):
            writer.commit([attempt(relax_result("B", "m")), attempt(result)])
        assert writer.view.task_states() == {}
        assert not writer.view.has("B", "m", "relax")
        writer.commit([attempt(relax_result("B", "m"))])
    assert verify(tmp_path / PATH) == []


def test_an_error_in_the_middle_of_a_transaction_leaves_no_trace(tmp_path: Path) -> None:
    """A segment that does not fit is found while writing; what the transaction had written is taken back."""
    path = tmp_path / PATH
    commits = campaign()
    with new_archive(path) as writer:
        for commit in commits:
            writer.commit(commit)
        longer = dynamics_result("B", "m", 2)
        state = "replica_0/state/velocity"
        longer = dataclasses.replace(longer, arrays={**longer.arrays, state: Array(np.ones((2, 4, 3)), "", True)})
        with pytest.raises(ArchiveError, match="segment 2 has"):
            writer.commit([attempt(dynamics_result("A", "m", 2)), attempt(longer)])
        other = dynamics_result("B", "m", 2)
        mass = "replica_0/particles/all/mass"
        other = dataclasses.replace(other, arrays={**other.arrays, mass: Array(np.ones(4), "u")})
        with pytest.raises(ArchiveError, match="differs from what earlier segments say"):
            writer.commit([attempt(dynamics_result("A", "m", 2)), attempt(other)])
        assert_stored(writer.view, commits)
        commits.append([attempt(dynamics_result("A", "m", 2)), attempt(dynamics_result("B", "m", 2))])
        writer.commit(commits[-1])
        assert_stored(writer.view, commits)
    assert verify(path) == []


def test_a_done_task_stays_as_it_is(tmp_path: Path) -> None:
    """The same result again, another one, a later failure: left out."""
    commits = campaign()
    with new_archive(tmp_path / PATH) as writer:
        for commit in commits:
            writer.commit(commit)
        again = [
            attempt(relax_result("A", "m", attempt=1), 3),
            attempt(dynamics_result("A", "m", 0)),
            attempt(failure(TaskKey("A", "m", "dynamics", 1)), 2),
        ]
        assert writer.commit(again) == 0
        assert_stored(writer.view, commits)


def test_a_retried_segment_stands_where_it_belongs(tmp_path: Path) -> None:
    """Failed attempts between segments change no row."""
    smooth, rough = tmp_path / "smooth.h5", tmp_path / "rough.h5"
    with new_archive(smooth) as writer:
        for segment in range(3):
            writer.commit([attempt(dynamics_result("A", "m", segment))])
    with new_archive(rough) as writer:
        for segment in range(3):
            key = TaskKey("A", "m", "dynamics", segment)
            writer.commit([attempt(failure(key))])
            writer.commit([attempt(dynamics_result("A", "m", segment), 2)])
    with open_archive(smooth) as a, open_archive(rough) as b:
        group, other = (view.group("A", "m", "dynamics") for view in (a, b))
        names: list[str] = []
        group.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert len(names) > 10
        for name in names:
            np.testing.assert_array_equal(group[name][()], other[name][()])
        assert list(a.table("tasks")["checksum"]) == [text for text in b.table("tasks")["checksum"] if text]


def test_quarantined_tasks_get_their_attempts_back(tmp_path: Path) -> None:
    path = tmp_path / PATH
    bad, good = TaskKey("A", "m", "relax"), TaskKey("B", "m", "relax")
    with new_archive(path) as writer:
        writer.commit([attempt(failure(bad, permanent=True), 3, True), attempt(failure(good), 1)])
        assert writer.view.task_states()[bad] == TaskState("quarantined", 3)
        assert writer.requeue_quarantined() == [bad]
        assert writer.requeue_quarantined() == []
    with ArchiveWriter.open(path) as writer:
        assert writer.view.task_states() == {bad: TaskState("failed", 0), good: TaskState("failed", 1)}
        writer.commit([attempt(relax_result("A", "m"), 1)])
        assert writer.view.task_states()[bad] == TaskState("done", 1)
    assert verify(path) == []


def test_the_configuration_can_be_lengthened(tmp_path: Path) -> None:
    path = tmp_path / PATH
    with new_archive(path) as writer:
        writer.set_header_config("name: test\nlonger: true\n" * 10000)
        assert writer.view.header.config_yaml.startswith("name: test\nlonger")
    assert verify(path) == []
    with open_archive(path) as view:
        assert view.header.physics == HEADER.physics


def test_text_and_small_arrays_and_attributes(tmp_path: Path) -> None:
    path = tmp_path / PATH
    with new_archive(path) as writer:
        writer.commit([attempt(displace_result("A", "m"))])
    with h5py.File(path) as plain:
        group = plain["materials/A/m/displace"]
        assert group["d0.0100/forces"].attrs["units"] == "eV angstrom-1"
        assert group["d0.0100"].attrs["distance_A"] == 0.01
        assert group["d0.0100/phonopy_yaml"].asstr()[()] == "phonopy: {units: Å}\n" * 200
        assert group["empty"].asstr()[()] == ""
        tasks = plain["tables/tasks"][()]
        assert tasks["host"][0].decode() == "node-Ü"


def test_create_refuses_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / PATH
    new_archive(path).close()
    before = path.read_bytes()
    with pytest.raises(ArchiveError, match="exists already"):
        ArchiveWriter.create(path, HEADER)
    assert path.read_bytes() == before
    ArchiveWriter.open(path).close()


def test_create_removes_the_journal_of_a_deleted_archive(tmp_path: Path) -> None:
    """An archive that was deleted without its journal does not haunt the next of its name."""
    path = tmp_path / PATH
    writer = new_archive(path)
    writer.commit([attempt(relax_result("A", "m"))])
    kill(writer)
    path.unlink()
    with ArchiveWriter.create(path, HEADER) as writer:
        assert writer.view.task_states() == {}
    assert verify(path) == []
