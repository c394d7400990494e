"""Master and worker in one process on a real archive, with made-up numerics."""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import pytest
from archive_samples import HEADER, material, model
from toy_runner import RESULTS, ToyRunner

from driver.archive.reader import open_archive
from driver.archive.records import TaskKey
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter
from driver.batch_size import BatchSize, Memory
from driver.errors import TaskError, UsageError
from driver.interrupts import Interrupts
from driver.master import Master, Summary
from driver.messages import Hello, LeaseEnd, Outcome, ToWorker, Work
from driver.models import ModelFile
from driver.scheduler import Scheduler
from driver.settings import ExecutionSettings
from driver.tasks import TaskSpec
from driver.transport import InProcessTransport
from driver.worker import Worker, WorkerIdentity

MATERIALS = ("A", "B", "C")


def specs(segments: int = 3, materials: tuple[str, ...] = MATERIALS) -> list[TaskSpec]:
    tasks = []
    for name in materials:
        relax = TaskKey(name, "m", "relax")
        tasks += [
            TaskSpec(relax, BatchSize(4), 4.0),
            TaskSpec(TaskKey(name, "m", "displace"), BatchSize(8), 8.0, (relax,)),
        ]
        before = relax
        for segment in range(segments):
            key = TaskKey(name, "m", "dynamics", segment)
            tasks.append(TaskSpec(key, BatchSize(8), 80.0, (before,)))
            before = key
    return tasks


class Silent:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.failures: list[tuple[TaskKey, bool]] = []

    def update(self, counts, remaining_cost, workers) -> None:
        """Ignore."""

    def failure(self, key: TaskKey, message: str, *, quarantined: bool) -> None:
        """Keep."""
        self.failures.append((key, quarantined))


def run(
    path: Path,
    runner: ToyRunner,
    *,
    tasks=None,
    capacity: int = 1000,
    attempts: int = 3,
    walltime_s: float | None = None,
) -> tuple[Summary, Silent]:
    """Run a campaign to its end or to a signal, resuming what is there."""
    if path.exists():
        writer = ArchiveWriter.open(path)
    else:
        writer = ArchiveWriter.create(path, HEADER)
        names = dict.fromkeys(spec.key.material for spec in tasks or specs())
        writer.add_materials([material(name) for name in names])
        writer.add_models([model("m")])
    progress = Silent()
    with writer, Interrupts() as interrupts:
        transport = InProcessTransport()
        models = {"m": ModelFile("m", Path("m.model"), "0")}
        identity = WorkerIdentity(0, "host", "cpu", capacity)
        transport.attach(Worker(identity, models, runner, transport.pending, interrupts, grace_s=0.05))
        scheduler = Scheduler(tasks or specs(), writer.view.task_states(), max_attempts=attempts)
        end_s = None if walltime_s is None else time.monotonic() + walltime_s
        execution = ExecutionSettings(grace_s=0.05)
        master = Master(scheduler, transport, writer, interrupts, progress, execution, host="host", end_s=end_s)
        return master.run(), progress


def test_a_campaign_is_done_and_a_second_run_finds_nothing_to_do(tmp_path):
    archive = tmp_path / "archive.h5"
    summary, _ = run(archive, ToyRunner())
    assert (summary.counts.done, summary.counts.left, summary.interrupted_by) == (15, 0, "")
    assert verify(archive) == []
    again = ToyRunner()
    run(archive, again)
    assert again.leases == []


def test_what_workers_have_to_say_is_logged_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(tmp_path / "archive.h5", ToyRunner())
    assert caplog.messages.index("rank 0: models are being made ready") < caplog.messages.index("rank 0: made up")
    assert caplog.messages.count("rank 0: made up") == 1


def test_a_longer_trajectory_is_only_more_tasks(tmp_path):
    archive = tmp_path / "archive.h5"
    run(archive, ToyRunner())
    again = ToyRunner()
    run(archive, again, tasks=specs(segments=5))
    assert sorted(key for lease in again.leases for key in lease) == sorted(
        TaskKey(name, "m", "dynamics", segment) for name in MATERIALS for segment in (3, 4)
    )


def test_a_transient_failure_is_tried_again(tmp_path):
    bad = TaskKey("B", "m", "dynamics", 1)
    summary, progress = run(tmp_path / "a.h5", ToyRunner(fail={bad: RuntimeError("hiccup")}, once=True))
    assert summary.counts.done == 15
    assert progress.failures == [(bad, False)]
    with open_archive(tmp_path / "a.h5") as view:
        assert [(row.key, row.attempt, row.message) for row in view.failures()] == [(bad, 1, "hiccup")]
        assert view.task_states()[bad].attempts == 2


def test_a_task_is_quarantined_after_max_attempts_and_only_its_dependents_wait(tmp_path):
    bad = TaskKey("B", "m", "dynamics", 1)
    summary, progress = run(tmp_path / "a.h5", ToyRunner(fail={bad: RuntimeError("hiccup")}))
    assert progress.failures == [(bad, False), (bad, False), (bad, True)]
    assert (summary.counts.done, summary.counts.quarantined, summary.counts.blocked) == (13, 1, 1)
    again = ToyRunner()
    run(tmp_path / "a.h5", again)
    assert again.leases == []


def test_a_permanent_failure_is_not_tried_again(tmp_path):
    bad = TaskKey("B", "m", "relax")
    summary, progress = run(tmp_path / "a.h5", ToyRunner(fail={bad: TaskError("no such element")}))
    assert progress.failures == [(bad, True)]
    assert (summary.counts.done, summary.counts.blocked) == (10, 4)


def test_attempts_are_counted_across_runs(tmp_path):
    bad = TaskKey("B", "m", "relax")
    run(tmp_path / "a.h5", ToyRunner(fail={bad: RuntimeError("x")}), tasks=specs(1), attempts=2)
    with ArchiveWriter.open(tmp_path / "a.h5") as writer:
        assert writer.requeue_quarantined() == [bad]
    summary, _ = run(tmp_path / "a.h5", ToyRunner(), tasks=specs(1), attempts=2)
    assert summary.counts.left == 0 and summary.counts.quarantined == 0


def test_one_poisonous_task_costs_the_others_nothing(tmp_path):
    bad = TaskKey("C", "m", "relax")
    runner = ToyRunner(poison={bad: ValueError("segfault in disguise")})
    summary, _ = run(tmp_path / "a.h5", runner, attempts=2)
    assert (summary.counts.done, summary.counts.quarantined, summary.counts.blocked) == (10, 1, 4)
    with open_archive(tmp_path / "a.h5") as view:
        rows = view.failures()
    assert {row.key for row in rows} == {bad} and "segfault in disguise" in rows[-1].traceback


def test_out_of_memory_halves_the_batch_until_it_fits(tmp_path):
    runner = ToyRunner(most_tasks=1)
    summary, progress = run(tmp_path / "a.h5", runner)
    assert summary.counts.done == 15 and progress.failures == []
    assert {len(lease) for lease in runner.leases[-6:]} == {1}


def test_batches_grow_with_the_memory_that_is_measured(tmp_path):
    """From one crystal at a time to as many as there are, but only where there is room for more."""
    tasks = [replace(spec, size=BatchSize(8, 80)) for spec in specs(6, tuple("ABCDEFGHIJKL"))]
    sizes = {}
    for name, room in (("much", 1e6), ("little", 12.0)):
        runner = ToyRunner(measured=Memory(peak_bytes=8.0, available_bytes=room))
        run(tmp_path / f"{name}.h5", runner, tasks=tasks, capacity=8)
        sizes[name] = [len(lease) for lease in runner.leases if lease[0].stage == "dynamics"]
    assert set(sizes["little"]) == {1}
    much = sizes["much"]
    assert max(much) >= 4
    assert all(size <= 4 * max(much[:index]) for index, size in enumerate(much) if index)  # of what has fitted


def test_a_worker_that_cannot_use_a_model_ends_the_run_with_its_reason(tmp_path):
    with pytest.raises(UsageError, match=r"rank 0: .* is no MACE model"):
        run(tmp_path / "a.h5", ToyRunner(bad_model="demo.model is no MACE model"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_drains_and_the_same_call_finishes(tmp_path, name):
    archive = tmp_path / "archive.h5"
    summary, _ = run(archive, ToyRunner(seconds=0.03, signals=(5, signal.Signals[name])), capacity=8)
    assert summary.interrupted_by == ("Ctrl-C" if name == "SIGINT" else name)
    assert 0 < summary.counts.done < 15 and verify(archive) == []
    with open_archive(archive) as view:
        assert sum(state.status == "done" for state in view.task_states().values()) == summary.counts.done
    summary, _ = run(archive, ToyRunner())
    assert (summary.counts.done, summary.interrupted_by) == (15, "")


def test_the_wall_time_stops_what_cannot_finish(tmp_path):
    """12 s are left, 10 s of them for the last commits: tasks of 0.2 s are handed out for 2 s, then no more."""
    summary, _ = run(tmp_path / "a.h5", ToyRunner(seconds=0.2), capacity=8, walltime_s=12.0)
    assert summary.interrupted_by == "wall time"
    assert 0 < summary.counts.done < 15 and summary.seconds < 3
    summary, _ = run(tmp_path / "a.h5", ToyRunner(), walltime_s=1000.0)
    assert (summary.counts.done, summary.interrupted_by) == (15, "")


def test_a_running_task_is_left_when_the_grace_is_over(tmp_path):
    summary, progress = run(tmp_path / "a.h5", ToyRunner(seconds=30.0, signals=(1, signal.SIGTERM)))
    assert summary.seconds < 5 and summary.counts.done == 0 and progress.failures == []


class Flood(InProcessTransport):
    """Workers in memory that do what they get at once, so that many messages wait together."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.workers = tuple(range(1, workers + 1))
        self.waiting: deque = deque((w, Hello("node", w, "cpu", BatchSize(8))) for w in self.workers)

    def send(self, worker: int, message: ToWorker) -> None:
        if isinstance(message, Work):
            for task in message.inputs:
                key = task.key
                self.waiting.append((worker, Outcome(message.lease_id, RESULTS[key.stage](key), 0.1)))
            self.waiting.append((worker, LeaseEnd(message.lease_id, BatchSize(8))))

    def receive(self, timeout_s: float):
        return self.waiting.popleft() if self.waiting else None

    def ready(self) -> bool:
        return bool(self.waiting)


def test_no_message_is_lost_however_many_wait(tmp_path):
    names = tuple(f"M{i}" for i in range(150))
    with ArchiveWriter.create(tmp_path / "a.h5", HEADER) as writer, Interrupts() as interrupts:
        writer.add_materials([material(name) for name in names])
        writer.add_models([model("m")])
        scheduler = Scheduler(specs(1, names))
        settings = ExecutionSettings(commit_every_s=0.2)
        master = Master(scheduler, Flood(400), writer, interrupts, Silent(), settings, end_s=time.monotonic() + 60)
        summary = master.run()
    assert (summary.counts.done, summary.interrupted_by) == (450, "")
    assert scheduler.idle  # the last message of each lease has come through as well


def test_where_others_have_gpus_a_worker_on_a_cpu_is_left_out(tmp_path):
    with ArchiveWriter.create(tmp_path / "a.h5", HEADER) as writer, Interrupts() as interrupts:
        writer.add_materials([material(name) for name in MATERIALS])
        writer.add_models([model("m")])
        flood = Flood(3)
        flood.waiting[1] = (2, Hello("node", 2, "cuda:0", BatchSize(8)))
        flood.waiting[2] = (3, Hello("node", 3, "cuda:1", BatchSize(8)))
        Master(Scheduler(specs()), flood, writer, interrupts, Silent(), ExecutionSettings()).run()
        (lost,) = writer.view.lost_workers()
        assert lost.rank == 1 and "sees no GPU, while other ranks do" in lost.reason
        assert len(writer.view.task_states()) == 15
