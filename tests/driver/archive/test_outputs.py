"""Outputs: what is there before is whole until what replaces it is, and what Latdyn did not write is left alone."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from archive_samples import attempt, campaign, new_archive, relax_result

from driver.archive import outputs
from driver.archive.outputs import MANIFEST, OutputFile, OutputFolder
from driver.archive.protection import OutputError, check_new_archive, is_archive
from driver.archive.reader import open_archive
from driver.archive.records import StorageError
from driver.archive.writer import ArchiveWriter

ROOT = Path(__file__).parents[3]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "toy" / "archive.h5"
    path.parent.mkdir(parents=True)
    (path.parent / "config.yaml").write_text("name: toy\n")
    (path.parent / "driver.log").write_text("begun\n")
    with new_archive(path) as writer:
        for commit in campaign(segments=1):
            writer.commit(commit)
    return path


def begins_with_ours(path: Path) -> bool:
    return path.read_bytes().startswith(b"ours")


def write(path: Path, text: str = "ours, new", **options: object) -> None:
    with OutputFile(path, begins_with_ours, **options).writing() as made:  # type: ignore[arg-type]
        assert made.name == path.name
        made.write_text(text)


def write_folder(path: Path, files: dict[str, str], kind: str = "report", **options: object) -> None:
    with OutputFolder(path, kind, **options).writing() as folder:  # type: ignore[arg-type]
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


# -- single files ------------------------------------------------------------------------------------------------------


def test_a_new_file_and_one_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "x.csv"
    write(path)
    path.chmod(0o640)
    write(path, "ours, newer")
    assert path.read_text() == "ours, newer"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["x.csv"]


def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a year's work")
    with pytest.raises(OutputError, match=r"x.csv exists, and nothing shows .* --overwrite"):
        write(path)
    assert path.read_text() == "a year's work"
    write(path, overwrite=True)
    assert path.read_text() == "ours, new"


def test_a_file_that_appears_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with pytest.raises(OutputError, match="exists"), OutputFile(path).writing() as made:
        made.write_text("ours")
        path.write_text("theirs")
    assert contents(tmp_path) == {"x.csv": "theirs"}


def test_an_empty_file_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    write(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "ours, new"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "x")
    write_to = OutputFile(tmp_path / "link", begins_with_ours)
    with write_to.writing() as made:
        made.write_text("ours")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "x").read_text() == "ours"


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_an_error_in_the_middle_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "x", "ours, old")
    with pytest.raises(type(error)), OutputFile(tmp_path / "x", begins_with_ours).writing() as made:
        made.write_text("half")
        raise error
    assert contents(tmp_path) == {"x": "ours, old"}


KILLED = """
import sys, time
from pathlib import Path
from driver.archive.outputs import OutputFile, OutputFolder
if sys.argv[1] == "file":
    with OutputFile(Path(sys.argv[2]), overwrite=True).writing() as made:
        made.write_text("half")
        print("now", flush=True)
        time.sleep(600)
with OutputFolder(Path(sys.argv[2]), "report").writing() as made:
    (made / "page").write_text("half")
    print("now", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_kill_in_the_middle_changes_nothing(tmp_path: Path, what: str) -> None:
    """And what it leaves is removed by the next command."""
    path = tmp_path / "out"
    if what == "file":
        write(path, "ours, old")
    else:
        write_folder(path, {"page": "old"})
    before = contents(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, what, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = [p for p in tmp_path.rglob("*.part") if p.is_dir()]
    assert len(left) == 1
    assert {name: text for name, text in contents(tmp_path).items() if ".part/" not in name} == before
    if what == "file":
        write(path)
    else:
        write_folder(path, {"page": "new"})
    assert not left[0].exists()


def test_a_folder_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    with OutputFile(tmp_path / "x").writing() as one:
        one.write_text("ours, one")
        write(tmp_path / "x", "ours, two")
        assert one.exists()
        (tmp_path / "x").unlink()
    assert (tmp_path / "x").read_text() == "ours, one"


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for path, message in {
        "folder": "is a folder: name a file",
        "file/x": "file is a file, not a folder",
        "loop": "circle",
        "pipe": "neither a file nor a folder",
        "x" * 300: "File name too long",
    }.items():
        with pytest.raises(OutputError, match=message) as told:
            write(tmp_path / path)
        assert "\n" not in str(told.value)
    write(tmp_path / ("y" * 250))
    with pytest.raises(OutputError, match="/proc/nowhere/x cannot be written"):
        write(Path("/proc/nowhere/x"))
    with pytest.raises(OutputError, match="is a file: name a folder"):
        write_folder(tmp_path / "file", {"page": "x"})
    with pytest.raises(OutputError, match=r"page.html names a file, but a report is a folder"):
        write_folder(tmp_path / "page.html", {"page": "x"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="no permission to write"):
        OutputFile(tmp_path / "closed" / "x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    write(tmp_path / "x", "ours, old")

    def full(path: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(outputs, "_sync", full)
    with pytest.raises(StorageError, match=r"x cannot be written: .* is unchanged; make room"):
        write(tmp_path / "x")
    assert contents(tmp_path) == {"x": "ours, old"}


def test_hdf5_names_a_full_disk_in_its_text(tmp_path: Path) -> None:
    text = "Can't write data (file write failed: errno = 28, error message = 'No space left on device')"
    with pytest.raises(StorageError, match="no space left"), OutputFile(tmp_path / "x").writing():
        raise OSError(text)


# -- what belongs to archives ------------------------------------------------------------------------------------------


def every_name(archive: Path, tmp_path: Path) -> dict[str, Path]:
    """Ways to an archive and its files."""
    (tmp_path / "link.csv").symlink_to(archive)
    (tmp_path / "folder").symlink_to(archive.parent)
    (tmp_path / "hard.csv").hardlink_to(archive)
    beside = {end: archive.with_name(archive.name + end) for end in (".journal", ".lock", ".new", ".part")}
    return {
        "itself": archive,
        "dots": archive.parent / ".." / "toy" / archive.name,
        "link": tmp_path / "link.csv",
        "folder": tmp_path / "folder" / archive.name,
        "hard": tmp_path / "hard.csv",
        **beside,
        "journal through a link": tmp_path / "folder" / f"{archive.name}.journal",
        "config": archive.parent / "config.yaml",
        "log": archive.parent / "driver.log",
    }


def snapshot(archive: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in archive.parent.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_nothing_of_a_campaign_is_replaced(archive: Path, tmp_path: Path, overwrite: bool, known: bool) -> None:
    before = snapshot(archive)
    for name, path in every_name(archive, tmp_path).items():
        options = {"overwrite": overwrite, "archives": (archive,) if known else ()}
        with pytest.raises(OutputError, match="which no command replaces"):
            OutputFile(path, lambda path: True, **options)  # type: ignore[arg-type]
        assert snapshot(archive) == before, name
        with pytest.raises(OutputError):
            write_folder(path, {"page": "x"}, **options)
        assert snapshot(archive) == before, name
    with pytest.raises(OutputError, match="folder of a campaign"):
        write_folder(archive.parent, {"page": "x"}, overwrite=overwrite)
    write(archive.parent / "metrics.csv")
    write_folder(archive.parent / "report", {"page": "x"})


def test_an_archive_in_use(archive: Path, tmp_path: Path) -> None:
    """Its journal is one by any name, and the archive is one whatever the file alone says."""
    with ArchiveWriter.open(archive) as writer:
        writer.commit([attempt(relax_result("B", "m"))])
        journal = archive.with_name("archive.h5.journal")
        (tmp_path / "hard").hardlink_to(journal)
        for path in (archive, journal, tmp_path / "hard", archive.with_name("archive.h5.lock")):
            with pytest.raises(OutputError, match="no command replaces"):
                OutputFile(path, overwrite=True)


def test_a_damaged_archive_is_one(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:3000])
    moved = archive.rename(tmp_path / "some.h5")
    assert is_archive(moved)
    with pytest.raises(OutputError, match="an archive, which no command replaces"):
        OutputFile(moved, overwrite=True)


def test_where_an_archive_may_come_into_being(archive: Path, tmp_path: Path) -> None:
    check_new_archive(tmp_path / "new.h5")
    (tmp_path / "dangling.h5").symlink_to("nowhere")
    (tmp_path / "old.h5.journal").write_text("left")
    for path, message in {
        archive: "exists already",
        tmp_path / "dangling.h5": "exists already",
        archive.with_name("archive.h5.journal"): "no command replaces",
        tmp_path / "old.h5": "old.h5.journal belongs to an archive that is not here",
        tmp_path / "old.h5.journal" / "x.h5": "is a file, not a folder",
    }.items():
        with pytest.raises(OutputError, match=message):
            check_new_archive(path)
    with open_archive(archive) as view:
        assert view.model_keys()


# -- folders -----------------------------------------------------------------------------------------------------------

OLD = {"index.html": "old page", "metrics.csv": "old", "figures/a.svg": "old a", "figures/b.svg": "old b"}
NEW = {"index.html": "new page", "metrics.csv": "new", "figures/a.svg": "new a", "figures/c.svg": "new c"}


def test_a_folder_again(tmp_path: Path) -> None:
    """The user's files stay; what is written no more goes."""
    write_folder(tmp_path / "out", OLD)
    (tmp_path / "out" / "notes.md").write_text("mine")
    (tmp_path / "out" / "figures" / "photo").write_text("mine")
    write_folder(tmp_path / "out", NEW)
    assert contents(tmp_path) == {
        f"out/{k}": v for k, v in {**NEW, "notes.md": "mine", "figures/photo": "mine"}.items()
    }
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_several_outputs_share_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path, OLD, "report")
    write_folder(tmp_path, {"summary.md": "x"}, "comparison")
    write_folder(tmp_path, NEW, "report")
    assert contents(tmp_path) == {**NEW, "summary.md": "x"}


def test_folders_of_somebody_else(tmp_path: Path) -> None:
    theirs = {"index.html": "their page", "thesis.tex": "x"}
    for name, text in theirs.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(OutputError, match="holds files that Latdyn did not write"):
        write_folder(tmp_path, NEW)
    assert contents(tmp_path) == theirs
    write_folder(tmp_path, NEW, overwrite=True)
    assert contents(tmp_path) == {**theirs, **NEW}


def test_files_that_have_been_changed(tmp_path: Path) -> None:
    write_folder(tmp_path, OLD)
    (tmp_path / "metrics.csv").write_text("old, with a column of mine")
    with pytest.raises(OutputError, match=r"metrics.csv has been changed since Latdyn wrote it"):
        write_folder(tmp_path, NEW)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "figures" / "c.svg").write_text("mine")
    with pytest.raises(OutputError, match=r"figures/c.svg exists, and Latdyn did not write it"):
        write_folder(tmp_path, NEW)
    assert contents(tmp_path)["index.html"] == "old page"


def test_a_forged_list_leads_nowhere_else(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", OLD)
    (tmp_path / "mine").write_text("old")
    listed = tmp_path / "out" / MANIFEST
    listed.write_text(listed.read_text().replace('"metrics.csv"', '"../mine"'))
    (tmp_path / "out" / "metrics.csv").unlink()
    write_folder(tmp_path / "out", NEW)
    assert (tmp_path / "mine").read_text() == "old"


def test_a_link_in_a_folder_does_not_lead_to_an_archive(archive: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "out", OLD)
    (tmp_path / "out" / "figures" / "c.svg").symlink_to(archive)
    before = snapshot(archive)
    with pytest.raises(OutputError, match="no command replaces"):
        write_folder(tmp_path / "out", NEW, overwrite=True)
    assert snapshot(archive) == before


def test_killed_between_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is: every file is whole, old or new, and the same command goes through."""
    rename, unlink = Path.replace, Path.unlink
    finished = False
    for last in range(20):
        folder = tmp_path / str(last)
        write_folder(folder, OLD)
        calls = iter(range(100))

        def dying(self: Path, *args: object, last: int = last, calls: object = calls, **options: object) -> object:
            if next(calls) >= last:  # type: ignore[call-overload]
                raise SystemExit("killed")
            return (rename if args else unlink)(self, *args, **options)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dying)
            patch.setattr(Path, "unlink", dying)
            try:
                write_folder(folder, NEW)
                finished = True
            except SystemExit:
                found = contents(folder)
                assert all(text in (OLD.get(name), NEW.get(name)) for name, text in found.items())
                assert found.keys() >= OLD.keys() & NEW.keys()
        write_folder(folder, NEW)
        assert contents(folder).items() >= NEW.items()
        if finished:
            break
    assert finished
    assert last > 5


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    seen = []
    with OutputFolder(tmp_path / "out", "report").writing() as folder:
        for name in ("a", "b"):
            (folder / name).write_text("x")
            seen.append((tmp_path / "out").exists())
            time.sleep(0)
    assert seen == [False, False]
    assert contents(tmp_path / "out") == {"a": "x", "b": "x"}
