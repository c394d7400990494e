"""The scheduler as a pure state machine: exhaustive small cases, properties, and a simulated large machine."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver.archive.records import TaskKey, TaskState
from driver.batch_size import BatchSize
from driver.scheduler import Scheduler
from driver.tasks import TaskSpec


def chain(material: str, model: str = "m", segments: int = 3, atoms: int = 80, cost: float = 100.0) -> list[TaskSpec]:
    relax = TaskKey(material, model, "relax")
    specs = [
        TaskSpec(relax, BatchSize(10), 10.0),
        TaskSpec(TaskKey(material, model, "displace"), BatchSize(5 * atoms), 20.0, (relax,)),
    ]
    before = relax
    for segment in range(segments):
        key = TaskKey(material, model, "dynamics", segment)
        specs.append(TaskSpec(key, BatchSize(atoms), cost, (before,)))
        before = key
    return specs


def campaign(n: int, **kwargs) -> list[TaskSpec]:
    return [spec for i in range(n) for spec in chain(f"M{i}", **kwargs)]


def drain_all(scheduler: Scheduler) -> list[TaskKey]:
    """Run everything that can be run, in the order of the leases."""
    order = []
    while leases := scheduler.assign():
        for lease in leases:
            for key in lease.tasks:
                order.append(key)
                scheduler.finish(key)
            scheduler.end_lease(lease.id)
    return order


def test_everything_is_done_once_and_after_what_it_requires():
    specs = campaign(7)
    scheduler = Scheduler(specs)
    scheduler.add_worker(1, BatchSize(160))
    scheduler.add_worker(2, BatchSize(160))
    order = drain_all(scheduler)
    assert sorted(order) == sorted(s.key for s in specs)
    position = {key: i for i, key in enumerate(order)}
    assert all(position[r] < position[s.key] for s in specs for r in s.requires)
    assert scheduler.idle and scheduler.counts.left == 0 and scheduler.remaining_cost() == 0


def test_longest_chain_goes_first():
    scheduler = Scheduler(chain("short", segments=1) + chain("long", segments=9))
    scheduler.add_worker(1, BatchSize(1))
    assert scheduler.assign()[0].tasks[0].material == "long"


def test_lease_respects_capacity_but_a_large_task_still_runs():
    scheduler = Scheduler([TaskSpec(TaskKey(f"M{i}", "m", "relax"), BatchSize(30), 1.0) for i in range(100)])
    scheduler.add_worker(1, BatchSize(70))
    assert [len(lease.tasks) for lease in scheduler.assign()] == [2, 2]
    big = Scheduler([TaskSpec(TaskKey("big", "m", "relax"), BatchSize(1000), 1.0)])
    big.add_worker(1, BatchSize(70))
    assert [lease.tasks[0].material for lease in big.assign()] == ["big"]


def test_leases_shrink_towards_the_end():
    scheduler = Scheduler([TaskSpec(TaskKey(f"M{i}", "m", "relax"), BatchSize(10), 1.0) for i in range(64)])
    scheduler.add_worker(1, BatchSize(10**9))
    scheduler.add_worker(2, BatchSize(10**9))
    sizes = []
    while leases := scheduler.assign():
        for lease in leases:
            sizes.append(len(lease.tasks))
            for key in lease.tasks:
                scheduler.finish(key)
            scheduler.end_lease(lease.id)
    assert sizes[0] == 16 and sizes[-1] == 1 and sizes == sorted(sizes, reverse=True)


def test_worker_stays_with_its_model():
    specs = [TaskSpec(TaskKey(f"M{i}", model, "relax"), BatchSize(10), 1.0) for i in range(8) for model in ("a", "b")]
    scheduler = Scheduler(specs, leases_in_flight=1)
    scheduler.add_worker(1, BatchSize(10))
    models = [key.model for key in drain_all(scheduler)]
    assert sum(x != y for x, y in itertools.pairwise(models)) == 1


def test_two_leases_in_flight_and_no_second_before_all_have_one():
    scheduler = Scheduler([TaskSpec(TaskKey(f"M{i}", "m", "relax"), BatchSize(10), 1.0) for i in range(100)])
    for worker in (1, 2, 3):
        scheduler.add_worker(worker, BatchSize(10))
    assert [lease.worker for lease in scheduler.assign()] == [1, 2, 3, 1, 2, 3]
    assert scheduler.assign() == []


def test_at_the_end_no_worker_hoards_what_another_could_run():
    scheduler = Scheduler([TaskSpec(TaskKey(f"M{i}", "m", "relax"), BatchSize(10), 1.0) for i in range(3)])
    scheduler.add_worker(1, BatchSize(10))
    scheduler.add_worker(2, BatchSize(10))
    assert [lease.worker for lease in scheduler.assign()] == [1, 2]


def test_failed_lease_is_split_until_the_culprit_stands_alone():
    specs = [TaskSpec(TaskKey(f"M{i}", "m", "relax"), BatchSize(1), 1.0) for i in range(16)]
    culprit = specs[11].key
    scheduler = Scheduler(specs, max_attempts=2)
    scheduler.add_worker(1, BatchSize(1000))
    failures = 0
    while leases := scheduler.assign():
        for lease in leases:
            if culprit not in lease.tasks:
                for key in lease.tasks:
                    scheduler.finish(key)
                scheduler.end_lease(lease.id)
                continue
            alone = scheduler.split_lease(lease.id)
            if alone is not None:
                assert alone == culprit
                failures += 1
                assert scheduler.fail(alone) == (failures == 2)
    counts = scheduler.counts
    assert failures == 2 and (counts.done, counts.quarantined, counts.left) == (15, 1, 0)


def test_split_leaves_alone_what_was_already_reported():
    scheduler = Scheduler(
        [TaskSpec(TaskKey(f"M{i}", "m", "relax"), BatchSize(1), 1.0) for i in range(4)], leases_in_flight=1
    )
    scheduler.add_worker(1, BatchSize(1000))
    (lease,) = scheduler.assign()
    for key in lease.tasks[:3]:
        scheduler.finish(key)
    assert scheduler.split_lease(lease.id) == lease.tasks[3]


def test_quarantine_blocks_dependents_and_nothing_else():
    scheduler = Scheduler(campaign(2))
    scheduler.add_worker(1, BatchSize(1))
    bad = TaskKey("M0", "m", "relax")
    while leases := scheduler.assign():
        for lease in leases:
            for key in lease.tasks:
                if key == bad:
                    assert scheduler.fail(key, permanent=True)
                else:
                    scheduler.finish(key)
            scheduler.end_lease(lease.id)
    counts = scheduler.counts
    assert (counts.done, counts.quarantined, counts.blocked, counts.left) == (5, 1, 4, 0)


def test_attempts_continue_where_an_earlier_run_left_them():
    key = TaskKey("M0", "m", "relax")
    scheduler = Scheduler(chain("M0"), {key: TaskState("failed", 2)}, max_attempts=3)
    scheduler.add_worker(1, BatchSize(100))
    (lease, *_) = scheduler.assign()
    assert scheduler.next_attempt(key) == 3
    assert scheduler.fail(lease.tasks[0]) is True


def test_resumes_from_the_archive_and_a_longer_trajectory_is_only_more_tasks():
    states = {spec.key: TaskState("done", 1) for spec in chain("M0", segments=3)}
    scheduler = Scheduler(chain("M0", segments=5), states)
    scheduler.add_worker(1, BatchSize(1000))
    assert drain_all(scheduler) == [TaskKey("M0", "m", "dynamics", 3), TaskKey("M0", "m", "dynamics", 4)]


def test_lost_worker_gives_its_tasks_back_and_drain_hands_out_nothing():
    scheduler = Scheduler(campaign(4))
    scheduler.add_worker(1, BatchSize(1000))
    scheduler.add_worker(2, BatchSize(1000))
    leases = scheduler.assign()
    lost = [key for lease in leases if lease.worker == 1 for key in lease.tasks]
    running = next(lease for lease in leases if lease.worker == 1)
    assert scheduler.lose_worker(1) == running.tasks
    for lease in leases:
        if lease.worker == 2:
            scheduler.end_lease(lease.id)
    assert set(lost) & {key for lease in scheduler.assign() for key in lease.tasks}
    scheduler.drain()
    assert scheduler.assign() == []
    assert scheduler.counts.left == 20


def test_a_task_that_requires_what_is_not_there_is_refused():
    with pytest.raises(ValueError, match="requires"):
        Scheduler([TaskSpec(TaskKey("A", "m", "displace"), BatchSize(1), 1.0, (TaskKey("A", "m", "relax"),))])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 5), st.integers(1, 400))
def test_any_order_of_events_ends_with_every_task_settled(seed, materials, workers, capacity):
    """Random successes, failures, whole-lease failures and lost workers: nothing is lost, doubled or run too early."""
    rng = random.Random(seed)
    specs = [s for i in range(materials) for s in chain(f"M{i}", model=rng.choice("ab"), segments=rng.randint(1, 4))]
    scheduler = Scheduler(specs, max_attempts=2)
    for worker in range(workers):
        scheduler.add_worker(worker, BatchSize(capacity))
    requires = {s.key: s.requires for s in specs}
    done: set[TaskKey] = set()
    out: list = []
    while True:
        out += scheduler.assign()
        if not out:
            break
        held = [key for lease in out for key in lease.tasks if key not in done]
        assert len(held) == len(set(held))
        lease = out.pop(rng.randrange(len(out)))
        event = rng.random()
        if event < 0.05 and len(scheduler.workers) > 1:
            suspects = scheduler.lose_worker(lease.worker)
            if len(suspects) == 1:
                scheduler.fail(suspects[0])
            out = [other for other in out if other.worker != lease.worker]
            continue
        if event < 0.15:
            alone = scheduler.split_lease(lease.id)
            if alone is not None:
                scheduler.fail(alone)
            continue
        for key in lease.tasks:
            if rng.random() < 0.85:
                assert set(requires[key]) <= done
                scheduler.finish(key)
                done.add(key)
            elif rng.random() < 0.5:
                scheduler.fail(key, permanent=rng.random() < 0.3)
        scheduler.end_lease(lease.id)
    counts = scheduler.counts
    assert counts.left == 0 and counts.done == len(done)
    assert scheduler.remaining_cost() == pytest.approx(0, abs=1e-6)
    assert scheduler.idle


@pytest.mark.parametrize("workers", [16, 2000])
def test_simulated_machine_is_kept_busy(workers):
    """Discrete-event simulation: the makespan stays close to the bound set by the work and the longest chain."""
    rng = random.Random(1)
    segments = 4
    specs = [s for i in range(400) for s in chain(f"M{i}", model=f"m{i % 4}", segments=segments)]
    scheduler = Scheduler(specs)
    for worker in range(workers):
        scheduler.add_worker(worker, BatchSize(80))
    cost = {s.key: s.cost * rng.uniform(0.9, 1.1) for s in specs}
    now, busy_until, events, sequence = 0.0, dict.fromkeys(range(workers), 0.0), [], 0
    while True:
        for lease in scheduler.assign():
            start = max(now, busy_until[lease.worker])
            busy_until[lease.worker] = start + sum(cost[key] for key in lease.tasks)
            sequence += 1
            heapq.heappush(events, (busy_until[lease.worker], sequence, lease))
        if not events:
            break
        now, _, lease = heapq.heappop(events)
        for key in lease.tasks:
            scheduler.finish(key)
        scheduler.end_lease(lease.id)
    assert scheduler.idle and scheduler.counts.left == 0
    bound = max(sum(cost.values()) / workers, 1.1 * (10 + segments * 100))
    assert now < 1.1 * bound + 100


def test_suspects_of_a_death_run_alone_and_the_killer_is_given_up():
    specs = [TaskSpec(TaskKey(f"M{i}", "m", "relax"), BatchSize(1), 1.0) for i in range(8)]
    killer = specs[3].key
    scheduler = Scheduler(specs, max_attempts=3)
    workers = iter(range(100))
    scheduler.add_worker(next(workers), BatchSize(1000))
    deaths = 0
    while leases := scheduler.assign():
        for lease in leases:
            if lease.worker not in scheduler.workers:
                continue
            if killer in lease.tasks and lease == scheduler.leases_of(lease.worker)[0]:
                deaths += 1
                suspects = scheduler.lose_worker(lease.worker)
                scheduler.add_worker(next(workers), BatchSize(1000))
                if len(suspects) == 1:
                    assert scheduler.fail(suspects[0]) == (deaths == 3)
                continue
            for key in lease.tasks:
                scheduler.finish(key)
            scheduler.end_lease(lease.id)
    counts = scheduler.counts
    assert (deaths, counts.done, counts.quarantined, counts.left) == (3, 7, 1, 0)


def test_what_would_not_be_done_in_time_is_not_handed_out():
    scheduler = Scheduler([TaskSpec(TaskKey(f"M{i}", "m", "relax"), BatchSize(1), 10.0) for i in range(8)])
    scheduler.add_worker(1, BatchSize(1000))
    scheduler.add_worker(2, BatchSize(1000))
    speed = {1: 1.0, 2: 0.1}

    def expected_s(worker: int, key: TaskKey) -> float:
        return scheduler.spec(key).cost / speed[worker]

    leases = scheduler.assign(25.0, expected_s)
    assert {lease.worker for lease in leases} == {1}
    assert sum(len(lease.tasks) for lease in leases) == 2
    assert scheduler.assign(25.0, expected_s) == []
    assert scheduler.counts.left == 8


def test_a_failed_task_is_tried_by_another_worker_first():
    specs = [TaskSpec(TaskKey("A", "m", "relax"), BatchSize(1), 1.0)]
    scheduler = Scheduler(specs, max_attempts=4)
    scheduler.add_worker(1, BatchSize(1))
    (lease,) = scheduler.assign()
    scheduler.add_worker(2, BatchSize(1))
    scheduler.fail(specs[0].key, worker=1)
    scheduler.end_lease(lease.id)
    (lease,) = scheduler.assign()
    assert lease.worker == 2
    scheduler.fail(specs[0].key, worker=2)
    scheduler.end_lease(lease.id)
    (lease,) = scheduler.assign()  # it has failed on both: any of them
    assert scheduler.fail(specs[0].key, worker=lease.worker) is False
    scheduler.end_lease(lease.id)
    (lease,) = scheduler.assign()
    assert scheduler.fail(specs[0].key, worker=lease.worker) is True


def test_one_worker_alone_cannot_have_a_task_given_up_while_there_are_others():
    specs = [TaskSpec(TaskKey("A", "m", "relax"), BatchSize(1), 1.0)]
    scheduler = Scheduler(specs, max_attempts=1)
    scheduler.add_worker(1, BatchSize(1))
    scheduler.add_worker(2, BatchSize(1))
    for worker, given_up in ((1, False), (2, True)):
        (lease,) = scheduler.assign()
        assert lease.worker == worker
        assert scheduler.fail(specs[0].key, worker=worker) is given_up
        scheduler.end_lease(lease.id)


def test_a_reported_task_is_not_run_again_when_its_lease_ends_before_the_commit():
    scheduler = Scheduler(chain("A", segments=1), leases_in_flight=1)
    scheduler.add_worker(1, BatchSize(1))
    (lease,) = scheduler.assign()
    scheduler.report(lease.tasks[0])
    scheduler.end_lease(lease.id)
    assert scheduler.idle and scheduler.assign() == [] and scheduler.counts.done == 0
    scheduler.finish(lease.tasks[0])
    assert scheduler.assign()


def test_a_worker_taken_out_gives_everything_back_and_blames_nothing():
    specs = [TaskSpec(TaskKey(f"M{i}", "m", "relax"), BatchSize(10), 1.0) for i in range(8)]
    scheduler = Scheduler(specs, max_attempts=1)
    scheduler.add_worker(1, BatchSize(20))
    assert scheduler.assign()
    scheduler.remove_worker(1)
    assert scheduler.idle and not scheduler.workers
    scheduler.add_worker(2, BatchSize(20))
    assert sorted(drain_all(scheduler)) == sorted(spec.key for spec in specs)


def test_a_worker_that_is_held_gets_nothing_until_it_is_released():
    scheduler = Scheduler([TaskSpec(TaskKey(f"M{i}", "m", "relax"), BatchSize(10), 1.0) for i in range(8)])
    for worker in (1, 2):
        scheduler.add_worker(worker, BatchSize(10))
    scheduler.hold(1, held=True)
    assert {lease.worker for lease in scheduler.assign()} == {2}
    scheduler.hold(1, held=False)
    assert {lease.worker for lease in scheduler.assign()} == {1}


def test_a_task_waits_for_workers_that_are_still_to_come_before_it_is_given_up():
    specs = [TaskSpec(TaskKey("A", "m", "relax"), BatchSize(1), 1.0)]
    scheduler = Scheduler(specs, max_attempts=1, workers_expected=2)
    scheduler.add_worker(1, BatchSize(1))
    (lease,) = scheduler.assign()
    assert scheduler.fail(specs[0].key, worker=1) is False
    scheduler.end_lease(lease.id)
    assert scheduler.assign() == []
    scheduler.add_worker(2, BatchSize(1))
    (lease,) = scheduler.assign()
    assert lease.worker == 2


def test_a_task_waits_no_longer_once_nobody_is_to_come():
    specs = [TaskSpec(TaskKey("A", "m", "relax"), BatchSize(1), 1.0)]
    scheduler = Scheduler(specs, max_attempts=2, workers_expected=2)
    scheduler.add_worker(1, BatchSize(1))
    (lease,) = scheduler.assign()
    scheduler.fail(specs[0].key, worker=1)
    scheduler.end_lease(lease.id)
    assert scheduler.assign() == []
    scheduler.expect(0)
    (lease,) = scheduler.assign()
    assert scheduler.fail(specs[0].key, worker=1) is True
