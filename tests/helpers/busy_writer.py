"""A writer to be killed: finishes the campaign of `archive_samples` in an archive, saying what it has committed.

python busy_writer.py ARCHIVE SEGMENTS [--locks no] [--checkpoint-bytes N] [--pause S] [--wait]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import archive_samples as samples

from driver.archive.records import Attempt
from driver.archive.storage import Storage
from driver.archive.writer import ArchiveWriter


class Lockless(Storage):
    """A file system without locks."""

    def lock(self, descriptor: int, *, exclusive: bool) -> bool | None:
        return None


def commits(segments: int) -> list[list[Attempt]]:
    """What there is to commit, the same in every process."""
    return samples.campaign(("A", "B", "C"), segments)


def main() -> None:
    """Commit what is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", type=Path)
    parser.add_argument("segments", type=int)
    parser.add_argument("--locks", default="yes")
    parser.add_argument("--checkpoint-bytes", type=int, default=60_000)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between commits")
    parser.add_argument("--wait", action="store_true", help="for a line on standard input before the first commit")
    options = parser.parse_args()
    storage = Storage() if options.locks == "yes" else Lockless()
    if options.archive.exists():
        writer = ArchiveWriter.open(options.archive, storage=storage)
    else:
        writer = ArchiveWriter.create(options.archive, samples.HEADER, storage=storage)
    with writer:
        writer._file._checkpoint_bytes = options.checkpoint_bytes
        writer.add_materials([samples.material(key) for key in "ABC"])
        writer.add_models([samples.model("m"), samples.model("n")])
        print("ready", flush=True)
        if options.wait:
            sys.stdin.readline()
        done = len(writer.view.rows("tasks"))
        for commit in commits(options.segments):
            done -= len(commit)
            if done < 0:
                writer.commit(commit)
                print(len(commit), flush=True)
                time.sleep(options.pause)
    print("finished", flush=True)


if __name__ == "__main__":
    main()
