"""Damage, drop, run: the campaign does again what was dropped, and only that, and ends as if nothing had been."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from campaigns import environment
from damage import address_of, flip
from soaks import HELPERS, differences

from driver.archive.drop import drop_damaged
from driver.archive.merge import merge
from driver.archive.reader import open_archive
from driver.archive.verify import verify


def run(path: Path, materials: int = 4) -> None:
    """A campaign of made-up tasks."""
    script = [sys.executable, str(HELPERS / "toy_mpi.py"), str(path), "--materials", str(materials)]
    subprocess.run(script, env=environment(), check=True, capture_output=True)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_next_run_does_what_was_dropped(tmp_path: Path, seed: int) -> None:
    rng, path, undisturbed = random.Random(seed), tmp_path / "archive.h5", tmp_path / "undisturbed.h5"
    run(path)
    undisturbed.write_bytes(path.read_bytes())
    with h5py.File(path, "r+") as plain:
        plain["materials/M0/m/dynamics/replica_0/state/position"][rng.randrange(3)] += 1
        plain[f"materials/M1/m/{rng.choice(['relax/forces', 'displace/d0.0100/forces'])}"][0] += 1
    flip(path, address_of(path, f"materials/{rng.choice(['M2', 'M2/m', 'M2/m/dynamics'])}") + 20)
    dropped = drop_damaged(path)
    assert dropped.tasks and not dropped.remaining
    with open_archive(path) as view:
        attempts = len(view.rows("tasks"))
    run(path)
    assert verify(path) == []
    assert differences(path, undisturbed) == 0
    with open_archive(path) as view:
        again = view.table("tasks")
        assert len(again["status"]) == attempts + len(dropped.tasks)
        assert set(again["status"][attempts:]) == {"done"}
        assert view.missing_structures() == []


def test_merged_archives_are_finished(tmp_path: Path) -> None:
    """Two machines, one with more materials; each killed early: the merged campaign is completed and complete."""
    run(tmp_path / "undisturbed.h5", 4)
    run(tmp_path / "a.h5", 2)
    run(tmp_path / "b.h5", 3)
    with h5py.File(tmp_path / "b.h5", "r+") as plain:
        plain["materials/M2/m/dynamics/replica_0/state/position"][1] += 1
    assert len(merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "c.h5").damaged) == 2
    run(tmp_path / "c.h5", 4)
    assert verify(tmp_path / "c.h5") == []
    assert differences(tmp_path / "c.h5", tmp_path / "undisturbed.h5") == 0
