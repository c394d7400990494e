"""benchmarks/scheduling.py: all of it with few workers; how fast it is, is not judged here."""

from __future__ import annotations

import json

import pytest

from benchmarks import scheduling


def test_share_is_of_the_time_between_the_first_result_and_the_last():
    tasks = [(0.0, 1.0), (1.0, 2.0), (0.5, 1.5), (2.0, 3.0)]  # from 1.0 to 3.0, of two workers
    assert scheduling.share(tasks, 2) == pytest.approx((1.0 + 0.5 + 1.0) / 4.0)
    assert scheduling.share([(0.0, 1.0), (1.0, 2.0)], 1) == 1.0


def test_messages_stop_after_their_time():
    slow = scheduling.Plan(10**5, 1, 0.3, 1, 1.0, 1.0)
    assert scheduling.messages_per_s(4, slow) > 0


@pytest.mark.mpi
@pytest.mark.slow
def test_measures_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scheduling, "QUICK", scheduling.Plan(300, 4, 30.0, 20, 10.0, 1.0))
    monkeypatch.setattr(scheduling, "MPI_WORKERS", 2)
    path = tmp_path / "found.json"
    scheduling.main(["--quick", "--workers-limit", "256", "--json", str(path)])
    found = json.loads(path.read_text())
    assert found["messages_per_s"].keys() == {"16", "128", "256"}
    assert found["us_per_decision"].keys() == {"256"}
    assert all(rate > 0 for rate in found["messages_per_s"].values())
    assert found["us_per_decision"]["256"] > 0
    assert all(0.0 < found["busy_share"][name] <= 1.0 for name in ("fast_fsync", "slow_fsync"))
    assert len(capsys.readouterr().out.splitlines()) == 6
