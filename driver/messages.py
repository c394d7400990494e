"""What master and workers say to each other. Plain frozen records; arrays in them travel out of band (pickle 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from driver.archive.records import TaskFailure, TaskResult
from driver.batch_size import BatchSize

if TYPE_CHECKING:
    from driver.tasks import TaskInput


@dataclass(frozen=True)
class Begin:
    """Master -> worker, once: what there is to know before any work (`driver.run.Launch`)."""

    launch: Any


@dataclass(frozen=True)
class Hello:
    """Worker -> master, once: it is ready. `capacity` is what it expects to hold in one batch of any model."""

    host: str
    pid: int
    device: str
    capacity: BatchSize


@dataclass(frozen=True)
class Refusal:
    """Worker -> master, instead of `Hello` or later: it cannot work (no GPU, a broken one). The others go on."""

    message: str
    host: str = ""
    device: str = ""


@dataclass(frozen=True)
class Leaving:
    """Worker -> master: a signal of its own has asked it to end, and it takes no more work."""

    reason: str


@dataclass(frozen=True)
class Notice:
    """Worker -> master: something that the user should know."""

    text: str


@dataclass(frozen=True)
class Work:
    """Master -> worker: run a lease. `inputs` is what each task starts from, `size` that of the whole batch."""

    lease_id: int
    size: BatchSize
    model: str
    stage: str
    inputs: tuple[TaskInput, ...]


@dataclass(frozen=True)
class Drain:
    """Master -> worker: give back what has not begun; what runs may go on for `grace_s` seconds."""

    grace_s: float


@dataclass(frozen=True)
class Stop:
    """Master -> worker: say `Bye` and exit."""


@dataclass(frozen=True)
class Leave:
    """Master -> worker: it has been given up (it lives, but gets nowhere); end the process at once."""


@dataclass(frozen=True)
class Outcome:
    """Worker -> master: a task of a lease has ended, well or not."""

    lease_id: int
    outcome: TaskResult | TaskFailure
    seconds: float


@dataclass(frozen=True)
class LeaseEnd:
    """Worker -> master: through with a lease; tasks without an outcome have not been done.

    `capacity` is what the worker, having measured, now expects to hold in a batch of the lease's model.
    """

    lease_id: int
    capacity: BatchSize


@dataclass(frozen=True)
class LeaseFailure:
    """Worker -> master: an exception that belongs to no single task ended the lease.

    `out_of_memory`: the batch was too large; `capacity` is what the worker now expects to hold.
    """

    lease_id: int
    exception: str
    message: str
    traceback: str
    seconds: float
    out_of_memory: bool
    capacity: BatchSize


@dataclass(frozen=True)
class Bye:
    """Worker -> master, after `Stop`, its last message. `busy`: something that cannot be interrupted still runs."""

    busy: bool = False


@dataclass(frozen=True)
class Beat:
    """Transport -> master: a worker that has nothing to report is getting on with its work."""


@dataclass(frozen=True)
class Gone:
    """Transport -> master: the worker's process is dead, or gives no sign of life."""

    reason: str


ToWorker = Begin | Work | Drain | Stop | Leave
ToMaster = Hello | Refusal | Leaving | Notice | Outcome | LeaseEnd | LeaseFailure | Bye | Beat | Gone
