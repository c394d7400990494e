"""Whose fault failures are."""

from __future__ import annotations

from driver.archive.records import TaskKey
from driver.blame import SUSPICIOUS, Blame

KEYS = [TaskKey(f"M{i}", "m", "relax") for i in range(8)]


def test_failures_that_succeed_elsewhere_convict_the_worker():
    blame = Blame()
    for key in KEYS[:SUSPICIOUS]:
        blame.failed(1, key)
    assert blame.suspects([1, 2, 3]) == {1} and not blame.convicted(1)
    for key in KEYS[:SUSPICIOUS]:
        blame.succeeded(2, key)
    assert blame.convicted(1) == SUSPICIOUS and not blame.convicted(2)


def test_a_task_that_fails_on_two_workers_is_at_fault_itself():
    blame = Blame()
    for key in KEYS[:SUSPICIOUS]:
        blame.failed(1, key)
    for key in KEYS[:SUSPICIOUS]:
        blame.failed(2, key)
    assert blame.suspects([1, 2, 3]) == set()
    for key in KEYS[:SUSPICIOUS]:
        blame.succeeded(3, key)  # in the end, by chance
    assert not blame.convicted(1) and not blame.convicted(2)


def test_a_success_clears_a_worker():
    blame = Blame()
    for key in KEYS[: SUSPICIOUS - 1]:
        blame.failed(1, key)
    blame.succeeded(1, KEYS[7])
    blame.failed(1, KEYS[6])
    assert blame.suspects([1, 2]) == set()
    for key in KEYS:
        blame.succeeded(2, key)
    assert not blame.convicted(1)


def test_a_suspect_stays_held_while_its_tasks_are_tried_elsewhere():
    blame = Blame()
    for key in KEYS[:SUSPICIOUS]:
        blame.failed(1, key)
    blame.succeeded(2, KEYS[0])
    assert blame.suspects([1, 2]) == {1} and not blame.convicted(1)


def test_nobody_is_held_back_where_all_would_be():
    blame = Blame()
    for worker in (1, 2):
        for key in KEYS[4 * worker - 4 : 4 * worker]:
            blame.failed(worker, key)
    assert blame.suspects([1, 2]) == set()
    assert blame.suspects([1, 2, 3]) == {1, 2}


def test_a_worker_that_is_gone_is_forgotten():
    blame = Blame()
    for key in KEYS[:SUSPICIOUS]:
        blame.failed(1, key)
    blame.forget(1)
    for key in KEYS:
        blame.succeeded(2, key)
    assert not blame.convicted(1)


def test_a_third_failure_of_a_task_at_fault_accuses_nobody():
    blame = Blame()
    for key in KEYS[:SUSPICIOUS]:
        for worker in (2, 3, 1):
            blame.failed(worker, key)
    assert blame.suspects([1, 2, 3, 4]) == set()


def test_a_sole_worker_is_held_back_while_others_are_still_to_come():
    blame = Blame()
    for key in KEYS[:SUSPICIOUS]:
        blame.failed(1, key)
    assert blame.suspects([1]) == set()
    assert blame.suspects([1], more_to_come=True) == {1}
