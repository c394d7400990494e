"""How much is computed at once: found by measuring what batches take, not by knowing devices and models.

On a GPU more is better until the memory ends: capacity grows with what the largest batches so far have needed. On a CPU
more is better until the caches end: capacity grows as long as that makes the work faster.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from driver.archive.records import Structure

NOMINAL_CUTOFF_A = 6.0
"""Range at which edges are counted; that of most MACE models."""

MEMORY_SHARE = 0.75
"""Share of the memory that a batch may be expected to need; fragments and other processes take the rest."""
MEMORY_GROWTH = 4.0
"""A batch is at most so many times larger than the largest that has fitted."""
CEILING = 0.8
"""Once memory has run out, batches stay below this share of the one that was too large."""

SPEED_SAMPLES = 3
"""Batches per size before sizes are compared, by the best of each: what disturbs a measurement makes it slower."""
SPEED_GAIN = 1.05
"""A batch of twice the size must be faster by this factor, or it is not worth its longer leases."""
SPEED_DOUBLINGS = 3
"""How many times the size is doubled at most."""


@dataclass(frozen=True)
class BatchSize:
    """What a batch holds, or may hold: atoms, and edges (directed pairs within 6 angstrom, estimated from density)."""

    atoms: float
    edges: float = math.inf

    def __add__(self, other: BatchSize) -> BatchSize:
        return BatchSize(self.atoms + other.atoms, self.edges + other.edges)

    def __mul__(self, factor: float) -> BatchSize:
        return BatchSize(self.atoms * factor, self.edges * factor)

    def within(self, capacity: BatchSize) -> bool:
        """Whether a batch of this size is no larger than `capacity`."""
        return self.atoms <= capacity.atoms and self.edges <= capacity.edges


NOTHING = BatchSize(0.0, 0.0)
"""Size of an empty batch."""


def size_of(structure: Structure) -> BatchSize:
    """Return the size of a crystal, its atoms taken as spread evenly."""
    atoms = len(structure)
    sphere_A3 = 4.0 / 3.0 * math.pi * NOMINAL_CUTOFF_A**3
    return BatchSize(atoms, atoms * atoms / max(structure.volume, 1.0) * sphere_A3)


@dataclass(frozen=True)
class Memory:
    """What a batch has needed at its peak, and what there is for one, in bytes of the device."""

    peak_bytes: float
    available_bytes: float


class BatchSizer:
    """Capacity of one worker for one model in one precision.

    Parameters
    ----------
    atoms : int
        Capacity before anything is measured.
    fixed : bool
        It was asked for: only running out of memory changes it.

    Attributes
    ----------
    capacity : BatchSize
        What the next batch may hold; a single crystal is always tried.
    """

    def __init__(self, atoms: int, *, fixed: bool = False) -> None:
        self.capacity = BatchSize(atoms)
        self._fixed = fixed
        self._ceiling = BatchSize(math.inf)
        self._largest = BatchSize(0.0, 0.0)
        self._bytes_per_atom = 0.0
        self._bytes_per_edge = 0.0
        self._doublings = 0
        self._settled = False
        self._rates: dict[int, list[float]] = defaultdict(list)

    def fitted(self, size: BatchSize, seconds: float, memory: Memory | None = None) -> None:
        """Take note of a batch that was computed.

        Parameters
        ----------
        size : BatchSize
        seconds : float
            How long the same work on each of its crystals took together.
        memory : Memory or None
            None where memory is not what limits (on a CPU).
        """
        if self._fixed:
            return
        if memory is not None:
            self._grow_with_memory(size, memory)
        elif seconds > 0:
            self._grow_with_speed(size, size.edges / seconds)

    def refused(self, size: BatchSize) -> None:
        """Take note of a batch for which there was not enough memory."""
        self._ceiling = BatchSize(
            min(self._ceiling.atoms, CEILING * size.atoms), min(self._ceiling.edges, CEILING * size.edges)
        )
        self.capacity = BatchSize(
            max(1.0, min(self.capacity.atoms, size.atoms) / 2), min(self.capacity.edges, size.edges) / 2
        )
        self._settled = True

    def _grow_with_memory(self, size: BatchSize, memory: Memory) -> None:
        """Set the capacity to what should fit if memory goes with atoms and with edges, each at its worst.

        Small batches say little, because of what every batch needs whatever its size.
        """
        if size.edges < 0.5 * self._largest.edges:
            return
        if size.edges > 2.0 * self._largest.edges:
            self._bytes_per_atom = self._bytes_per_edge = 0.0
        self._bytes_per_atom = max(self._bytes_per_atom, memory.peak_bytes / size.atoms)
        self._bytes_per_edge = max(self._bytes_per_edge, memory.peak_bytes / size.edges)
        self._largest = BatchSize(max(self._largest.atoms, size.atoms), max(self._largest.edges, size.edges))
        room = MEMORY_SHARE * memory.available_bytes
        self.capacity = BatchSize(
            max(1.0, min(room / self._bytes_per_atom, MEMORY_GROWTH * self._largest.atoms, self._ceiling.atoms)),
            min(room / self._bytes_per_edge, MEMORY_GROWTH * self._largest.edges, self._ceiling.edges),
        )

    def _grow_with_speed(self, size: BatchSize, rate: float) -> None:
        """Double the capacity while that pays, then stay where it paid last."""
        if self._settled or size.atoms <= 0.5 * self.capacity.atoms:
            return
        rates = self._rates[self._doublings]
        rates.append(rate)
        if len(rates) != SPEED_SAMPLES:
            return
        if self._doublings and max(rates) < SPEED_GAIN * max(self._rates[self._doublings - 1]):
            self.capacity *= 0.5
            self._settled = True
        elif self._doublings < SPEED_DOUBLINGS:
            self.capacity *= 2.0
            self._doublings += 1
        else:
            self._settled = True
