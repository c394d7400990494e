"""Short versions of the soaks of benchmarks/faults.py: nothing committed is ever lost or altered."""

from __future__ import annotations

from pathlib import Path

from soaks import flip_bytes, kill_campaigns, kill_writers, lose_power, replay_prefixes


def test_prefixes_of_a_longer_run(tmp_path: Path) -> None:
    """tests/driver/archive/test_crashes.py replays every one of a shorter run."""
    counts = replay_prefixes(tmp_path, segments=6, every=7)
    assert counts["lost"] == 0
    assert counts["prefixes"] > 80


def test_power_losses_of_a_longer_run(tmp_path: Path) -> None:
    counts = lose_power(tmp_path, segments=6, images=80, seed=3)
    assert (counts["lost"], counts["power-loss images"]) == (0, 80)


def test_flipped_bits(tmp_path: Path) -> None:
    """In the raw data of any dataset or table every flip is found; elsewhere too, or all that is read is the same."""
    counts = flip_bytes(tmp_path, flips=240, seed=5)
    assert counts["lost"] == counts["unnoticed"] == 0
    assert counts["found"] + counts["refused"] > 190
    assert counts["datasets and tables"] > 55


def test_killed_writers(tmp_path: Path) -> None:
    counts = kill_writers(tmp_path, kills=12, seed=1)
    assert counts["lost"] == 0
    assert counts["kills"] >= 12


def test_a_campaign_killed_until_it_completes(tmp_path: Path) -> None:
    """In the end it equals the undisturbed one, column by column."""
    counts = kill_campaigns(tmp_path, kills=4, materials=6, seed=2)
    assert counts["lost"] == counts["different"] == 0
    assert counts["kills"] >= 4
