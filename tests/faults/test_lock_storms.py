"""Short versions of benchmarks/locks.py: nodes that each grant every lock, simultaneous starts, kills."""

from __future__ import annotations

from pathlib import Path

from nodes import cache_storm, lock_storm


def test_one_writer_of_all_that_start_together(tmp_path: Path) -> None:
    counts = lock_storm(tmp_path, 20, seed=1)
    assert counts["double"] == counts["stuck"] == counts["nobody"] == counts["broken"] == 0, counts
    assert counts["simultaneous starts"] == 20
    assert counts["held"] >= 10 and counts["refused"] > 50 and counts["killed"] > 0, counts


def test_what_is_made_once_is_never_lost(tmp_path: Path) -> None:
    counts = cache_storm(tmp_path, 20, seed=1)
    assert counts["lost"] == counts["broken"] == counts["twice"] == counts["left over"] == 0, counts
    assert counts["simultaneous starts"] == 20
    assert counts["got it"] + counts["killed"] == 160 and counts["killed"] > 0, counts
