"""How master and workers talk: in process, or over MPI. The only package that imports mpi4py, and only when needed.

`world`: who the ranks are, how they come together and how they part. `mailbox`: the thread of a rank that sends,
receives and gives signs of life while the main thread computes. `ports`: what master and worker see of it.
`in_process`: master and worker in one process, without MPI. (`driver.guard` ends a rank that is stopped.)
"""

from driver.transport.in_process import InProcessTransport
from driver.transport.ports import Handler, MasterTransport, MPIMaster, MPIWorker
from driver.transport.world import EXIT_CRASHED, World, abort_on_error, connect, survives_deaths

__all__ = [
    "EXIT_CRASHED",
    "Handler",
    "InProcessTransport",
    "MPIMaster",
    "MPIWorker",
    "MasterTransport",
    "World",
    "abort_on_error",
    "connect",
    "survives_deaths",
]
