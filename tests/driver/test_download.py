from __future__ import annotations

import fcntl
import hashlib
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from http_server import Behaviour, serve

from driver.download import Retries, download, hash_file, progress_bar, recorded_sha256
from driver.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
CONTENT = os.urandom(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Retries(attempts=3, pause_s=0.01, timeout_s=5.0)


@pytest.fixture
def behaviour():
    return Behaviour(CONTENT)


@pytest.fixture
def url(behaviour):
    with serve(behaviour) as address:
        yield address


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache" / "m.model"


def assert_complete(target):
    assert target.read_bytes() == CONTENT
    assert recorded_sha256(target) == SHA256
    assert sorted(path.name for path in target.parent.iterdir()) == ["m.model", "m.model.sha256"]


def test_a_file_arrives_with_its_checksum_and_progress(url, target):
    seen = []
    assert download(url, target, sha256=SHA256.upper(), progress=lambda *now: seen.append(now), retries=QUICK) == SHA256
    assert_complete(target)
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert hash_file(target) == SHA256


def test_a_connection_that_breaks_off_is_continued_not_repeated(url, behaviour, target):
    behaviour.cut_after = [1_000_000, 500_000]
    download(url, target, retries=QUICK)
    assert_complete(target)
    assert [request.get("Range") for request in behaviour.requests] == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_later_run_continues_what_an_earlier_one_left(url, behaviour, target):
    behaviour.cut_after = [700_000]
    with pytest.raises(UsageError, match=r"broke off after 700000 of 3000000.*continues.*copy the file.*m\.model"):
        download(url, target, retries=Retries(attempts=1, pause_s=0.0))
    assert not target.exists()
    assert (target.parent / "m.model.part").stat().st_size == 700_000
    download(url, target, retries=QUICK)
    assert_complete(target)
    assert behaviour.requests[-1]["Range"] == "bytes=700000-"


def test_a_file_that_changed_on_the_server_is_not_continued(url, behaviour, target):
    behaviour.cut_after = [700_000]
    behaviour.content, behaviour.etag = os.urandom(3_000_000), '"old"'
    with pytest.raises(UsageError):
        download(url, target, retries=Retries(attempts=1, pause_s=0.0))
    behaviour.content, behaviour.etag = CONTENT, '"new"'
    download(url, target, retries=QUICK)
    assert_complete(target)


@pytest.mark.parametrize("change", [{"etag": ""}, {"ranges": False}, {"etag": 'W/"weak"'}])
def test_a_server_that_cannot_continue_is_read_from_the_start(url, behaviour, target, change):
    for name, value in change.items():
        setattr(behaviour, name, value)
    behaviour.cut_after = [700_000]
    download(url, target, retries=QUICK)
    assert_complete(target)


def test_a_part_that_is_whole_already_is_just_checked(url, behaviour, target):
    behaviour.cut_after = [700_000]
    with pytest.raises(UsageError):
        download(url, target, retries=Retries(attempts=1, pause_s=0.0))
    (target.parent / "m.model.part").write_bytes(CONTENT)
    download(url, target, sha256=SHA256, retries=QUICK)
    assert_complete(target)


def test_a_part_that_is_too_long_is_thrown_away(url, behaviour, target):
    behaviour.cut_after = [700_000]
    with pytest.raises(UsageError):
        download(url, target, retries=Retries(attempts=1, pause_s=0.0))
    (target.parent / "m.model.part").write_bytes(CONTENT + b"more")
    download(url, target, retries=QUICK)
    assert_complete(target)


def test_a_wrong_checksum_leaves_nothing_and_the_old_file_alone(url, target):
    target.parent.mkdir()
    target.write_bytes(b"as it was")
    with pytest.raises(UsageError, match=f"{SHA256}, not {'0' * 64}"):
        download(url, target, sha256="0" * 64, retries=QUICK)
    assert target.read_bytes() == b"as it was"
    assert not (target.parent / "m.model.part").exists()
    assert recorded_sha256(target) == ""


def test_a_server_gone_midway_is_one_clear_line(target):
    behaviour = Behaviour(CONTENT, cut_after=[1_000_000])
    with serve(behaviour) as url:

        def leave(done, total):
            if done and behaviour.statuses == []:
                behaviour.statuses = [503] * 99

        with pytest.raises(UsageError, match=r"503.*try again") as caught:
            download(url, target, progress=leave, retries=QUICK)
    assert "\n" not in str(caught.value)
    assert (target.parent / "m.model.part").stat().st_size == 1_000_000
    assert not target.exists()


def test_a_busy_server_is_asked_again(url, behaviour, target):
    behaviour.statuses = [503, 429]
    download(url, target, retries=QUICK)
    assert_complete(target)


def test_a_missing_file_is_not_asked_for_again(url, behaviour, target):
    behaviour.statuses = [404, 404]
    with pytest.raises(UsageError, match="404"):
        download(url, target, retries=QUICK)
    assert len(behaviour.requests) == 1
    assert list(target.parent.iterdir()) == []


def test_a_web_page_is_no_model(url, behaviour, target):
    behaviour.content_type = "text/html; charset=utf-8"
    with pytest.raises(UsageError, match="web page"):
        download(url, target, retries=QUICK)
    assert not target.exists()


def test_no_connection_says_what_to_do(target):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: refuses
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/m.model"
        with pytest.raises(
            UsageError, match=r"refused.*copy the file from a machine with internet access to .*m\.model"
        ):
            download(url, target, retries=Retries(attempts=2, pause_s=0.01))
    assert list(target.parent.iterdir()) == []


def test_a_second_download_of_the_same_file_is_refused(url, target):
    target.parent.mkdir()
    with (target.parent / "m.model.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another process"):
            download(url, target, retries=QUICK)


def test_two_at_once_without_locks_leave_no_damage(url, target, monkeypatch):
    """As where each node of a parallel file system grants every lock."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)

    def other(done, total):
        if 0 < done < len(CONTENT):
            with (target.parent / "m.model.part").open("r+b") as stream:
                stream.write(b"other")

    with pytest.raises(UsageError, match=r"another process wrote to .* run this again"):
        download(url, target, progress=other, retries=QUICK)
    assert list(target.parent.iterdir()) == []
    download(url, target, retries=QUICK)
    assert_complete(target)


def test_two_processes_at_once_leave_one_whole_file(url, target):
    code = "import sys, pathlib, driver.download as d; d.download(sys.argv[1], pathlib.Path(sys.argv[2]))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code, url, str(target)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes
    assert all(not error or "another process" in error for error in errors), errors
    assert_complete(target)


def test_a_folder_that_cannot_be_written_is_named(url, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(UsageError, match=r"cannot write.*choose another folder"):
        download(url, tmp_path / "cache" / "m.model", retries=QUICK)


def test_a_full_disk_is_named_and_the_download_continued_later(url, behaviour, target):
    """A limit on the size of files stands for the full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, limits[1]))
    try:
        with pytest.raises(UsageError, match=r"cannot write .*part \(File too large\); make room"):
            download(url, target, retries=QUICK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    download(url, target, retries=QUICK)
    assert_complete(target)
    assert behaviour.requests[-1]["Range"] == "bytes=1500000-"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/m", "file:///etc/passwd", ""])
def test_other_addresses_are_refused(url, target):
    with pytest.raises(UsageError, match="only http and https"):
        download(url, target)


def test_progress_bar_takes_a_total_that_is_known_late(capsys):
    with progress_bar("mace-mpa-0") as report:
        report(0, None)
        report(10, 100)
        report(100, 100)
