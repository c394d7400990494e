"""How long may a worker be silent, and when must the run end."""

from __future__ import annotations

import math

import pytest

from driver.errors import UsageError
from driver.liveness import FIRST, SLACK, Liveness
from driver.walltime import end_of_run_s, parse_duration_s


def test_silence_is_judged_by_the_workers_own_speed():
    liveness = Liveness(patience_s=60.0)
    liveness.heard(1, 0.0)
    liveness.heard(2, 0.0)
    liveness.measured(1, "dynamics", cost=100.0, seconds=10.0)
    liveness.measured(2, "dynamics", cost=100.0, seconds=100.0)
    running = {1: ("dynamics", 100.0), 2: ("dynamics", 100.0)}
    allowed = 60.0 + SLACK * 10.0
    assert liveness.silent(running, now_s=allowed - 1) == []
    (silence,) = liveness.silent(running, now_s=allowed + 1)
    assert silence.worker == 1 and silence.allowed_s == pytest.approx(allowed)
    liveness.heard(1, allowed)
    assert liveness.silent(running, now_s=allowed + 1) == []


def test_each_stage_has_a_speed_of_its_own():
    liveness = Liveness(patience_s=60.0)
    liveness.measured(1, "relax", 10.0, 10.0)
    liveness.measured(1, "dynamics", 1000.0, 10.0)
    assert liveness.expected_s(1, "dynamics", 500.0) == pytest.approx(5.0)
    assert liveness.expected_s(1, "relax", 5.0) == pytest.approx(5.0)
    assert liveness.expected_s(1, "displace", 500.0) == 0.0


def test_work_of_a_kind_that_nobody_has_done_is_given_longer():
    liveness = Liveness(patience_s=60.0)
    liveness.heard(1, 0.0)
    assert liveness.silent({1: ("relax", 100.0)}, now_s=FIRST * 60.0 - 1) == []
    assert [s.worker for s in liveness.silent({1: ("relax", 100.0)}, now_s=FIRST * 60.0 + 1)] == [1]


def test_a_new_worker_is_taken_for_as_fast_as_the_mean():
    liveness = Liveness(patience_s=60.0)
    for worker, seconds in ((1, 10.0), (2, 50.0)):
        liveness.measured(worker, "relax", 100.0, seconds)
    assert liveness.speed(3, "relax") == pytest.approx(200.0 / 60.0)
    assert liveness.speed(2, "relax") == pytest.approx(2.0)


def test_idle_workers_need_not_speak():
    liveness = Liveness(patience_s=1.0)
    liveness.heard(1, 0.0)
    assert liveness.silent({}, now_s=1e9) == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("10:00", 600), ("01:00:00", 3600), ("2-00:00:01", 172801), ("0.5", 0.5)]
)
def test_lengths_of_time(text, seconds):
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["soon", "1h", "", "1:2:3:4"])
def test_what_is_no_length_of_time_is_named(text):
    with pytest.raises(UsageError, match="walltime"):
        parse_duration_s(text)


def test_the_setting_wins_then_slurm():
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "5000"}
    assert end_of_run_s("60", environment, now_s=1000.0) == 1060.0
    assert end_of_run_s(None, environment, now_s=1000.0) == 5000.0
    assert end_of_run_s(None, {}, now_s=1000.0) is None


def test_slurm_is_asked_where_it_does_not_say():
    asked = []

    def ask(job: str) -> str:
        asked.append(job)
        return "2026-01-01T12:00:00"

    end = end_of_run_s(None, {"SLURM_JOB_ID": "7"}, now_s=0.0, ask=ask)
    assert asked == ["7"] and end is not None and math.isfinite(end)
    assert end_of_run_s(None, {"SLURM_JOB_ID": "7"}, ask=lambda job: "NONE") is None
    assert end_of_run_s(None, {"SLURM_JOB_ID": "7"}, ask=lambda job: "") is None
