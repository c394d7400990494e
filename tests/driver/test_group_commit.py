"""Results share commits, and none waits for long."""

from __future__ import annotations

from archive_samples import attempt, relax_result

from driver.group_commit import PAUSE, GroupCommit

ATTEMPT = attempt(relax_result("A", "m"))


def test_no_result_waits_longer_than_it_may():
    commits = GroupCommit(1.0)
    assert not commits.overdue(100.0)
    commits.add(ATTEMPT, 100.0)
    commits.add(ATTEMPT, 100.9)
    assert not commits.overdue(100.99) and commits.overdue(101.0)
    commits.committed(101.0, 101.1)
    assert commits.waiting == [] and not commits.overdue(200.0)


def test_commits_rest_by_what_a_small_one_costs():
    """Where each takes 65 ms, as with a slow fsync, the pause grows to a few of them; large ones do not count."""
    commits, now = GroupCommit(1.0), 0.0
    for _ in range(60):
        commits.add(ATTEMPT, now)
        commits.committed(now, now + 0.065)
        now += 0.065
    commits.committed(now, now + 0.7)
    now += 0.7
    assert not commits.rested(now + 0.9 * PAUSE * 0.065)
    assert commits.rested(now + 1.2 * PAUSE * 0.065)


def test_with_nothing_to_commit_nobody_hurries():
    commits = GroupCommit(1.0)
    assert commits.wait_s(5.0) == 0.5
    commits.committed(5.0, 5.01)
    commits.add(ATTEMPT, 5.01)
    assert 0.0 < commits.wait_s(5.01) <= PAUSE * 0.011
