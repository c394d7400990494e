"""The number of tasks done, as job scripts ask for it."""

from __future__ import annotations

import time

import pytest
from archive_samples import attempt, failure, new_archive, relax_result

from driver.__main__ import main
from driver.archive.records import LostWorker, TaskKey


def test_done_counts_committed_tasks_and_nothing_else(tmp_path, capsys):
    path = tmp_path / "archive.h5"
    with new_archive(path) as writer:
        writer.commit([attempt(relax_result("A", "m")), attempt(failure(TaskKey("B", "m", "relax")))])
    assert main(["status", "--done", str(path)]) == 0
    assert capsys.readouterr().out == "1\n"


def test_lost_workers_are_shown(tmp_path, capsys):
    path = tmp_path / "archive.h5"
    with new_archive(path) as writer:
        writer.note_lost_worker(LostWorker(3, "node-7", "cuda:1", "no sign of life for 300 s", time.time() - 60))
    assert main(["status", str(path)]) == 0
    assert "rank 3 on node-7 cuda:1 lost 60 s ago: no sign of life for 300 s" in " ".join(
        capsys.readouterr().out.split()
    )


def test_done_is_none_before_the_first_run(tmp_path, capsys):
    assert main(["status", "--done", str(tmp_path / "archive.h5")]) == 0
    assert capsys.readouterr().out == "0\n"


def test_done_of_what_is_no_archive_is_an_error(tmp_path, capsys):
    path = tmp_path / "archive.h5"
    path.write_bytes(b"no archive")
    assert main(["status", "--done", str(path)]) == 2
    assert str(path) in capsys.readouterr().err


def test_watch_and_done_exclude_each_other(tmp_path):
    with pytest.raises(SystemExit):
        main(["status", "--done", "--watch", str(tmp_path / "archive.h5")])
