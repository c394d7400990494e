"""Rank 0 of three as ASE sees it, where the others are busy with something else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import ase.parallel


class BusyRanks:
    """A communicator of which the other ranks take no part in anything: under MPI each of its calls would hang."""

    rank = 0
    size = 3

    def _refuse(self, *arguments: object, **options: object) -> NoReturn:
        raise AssertionError("ASE wants something of the other ranks")

    broadcast = barrier = sum = sum_scalar = product = _refuse


@contextmanager
def busy_ranks() -> Iterator[None]:
    """Let ASE believe that there are other ranks."""
    before = ase.parallel.world.comm
    ase.parallel.world.comm = BusyRanks()
    try:
        yield
    finally:
        ase.parallel.world.comm = before
