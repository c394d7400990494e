"""The size of batches, against devices whose memory and speed are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from driver.archive.records import Structure
from driver.batch_size import SPEED_DOUBLINGS, BatchSize, BatchSizer, Memory, size_of


class Gpu:
    """A device where a batch needs a fixed part, and so much per atom and edge."""

    def __init__(self, available: float, fixed: float, per_atom: float, per_edge: float) -> None:
        self.available = available
        self.costs = fixed, per_atom, per_edge

    def needs(self, size: BatchSize) -> float:
        fixed, per_atom, per_edge = self.costs
        return fixed + per_atom * size.atoms + per_edge * size.edges

    def run(self, sizer: BatchSizer, crystal: BatchSize) -> BatchSize:
        """Fill a batch with crystals of one kind up to the capacity, and compute it."""
        batch = crystal
        while (batch + crystal).within(sizer.capacity):
            batch += crystal
        if self.needs(batch) > self.available:
            sizer.refused(batch)
        else:
            sizer.fitted(batch, 1.0, Memory(self.needs(batch), self.available))
        return batch


IODIDE, FLUORIDE = BatchSize(80, 80 * 25), BatchSize(80, 80 * 65)


@pytest.mark.parametrize("first", [100, 20_000, 10**6])
def test_fills_a_gpu_without_exceeding_it(first):
    gpu = Gpu(available=80e9, fixed=1e9, per_atom=1e6, per_edge=5e4)
    sizer = BatchSizer(first)
    batches = [gpu.run(sizer, IODIDE) for _ in range(30)]
    share = gpu.needs(batches[-1]) / gpu.available
    assert 0.6 < share < 1.0
    # A denser material fills it as well, not fuller: that its atoms have more neighbours is known beforehand.
    batches = [gpu.run(sizer, FLUORIDE) for _ in range(10)]
    assert all(gpu.needs(batch) < gpu.available for batch in batches)
    assert gpu.needs(batches[-1]) / gpu.available > 0.5


def test_grows_in_steps():
    gpu = Gpu(available=1e15, fixed=0.0, per_atom=1.0, per_edge=1.0)
    sizer = BatchSizer(100)
    batches = [gpu.run(sizer, IODIDE) for _ in range(6)]
    ratios = [b.atoms / a.atoms for a, b in itertools.pairwise(batches)]
    assert all(2.0 < ratio <= 4.0 for ratio in ratios)


def test_stays_below_what_was_too_large():
    """Where memory is not as it seems (fragments, another process), its end is met once, not in every batch."""
    gpu = Gpu(available=80e9, fixed=0.0, per_atom=0.0, per_edge=5e4)
    sizer = BatchSizer(100)
    refusals = 0
    for _ in range(100):
        batch = BatchSize(0.0, 0.0) + IODIDE
        while (batch + IODIDE).within(sizer.capacity):
            batch += IODIDE
        if gpu.needs(batch) > 0.4 * gpu.available:
            refusals += 1
            sizer.refused(batch)
        else:
            sizer.fitted(batch, 1.0, Memory(gpu.needs(batch), gpu.available))
    assert 1 <= refusals <= 3
    assert gpu.needs(batch) > 0.2 * gpu.available


def crystal_rate(best_atoms: float):
    """Edges per second of a CPU whose caches hold so many atoms: growing up to there, falling beyond."""
    return lambda atoms: 1e5 * (min(atoms, best_atoms) / best_atoms) ** 0.5 * (min(1.0, best_atoms / atoms) ** 0.2)


@pytest.mark.parametrize(("best", "expected"), [(100, 100), (400, 400), (10**6, 100 * 2**SPEED_DOUBLINGS)])
def test_a_cpu_takes_the_size_with_the_best_throughput(best, expected):
    rate, sizer = crystal_rate(best), BatchSizer(100)
    for _ in range(40):
        size = BatchSize(sizer.capacity.atoms, 30 * sizer.capacity.atoms)
        sizer.fitted(size, size.edges / rate(size.atoms))
    assert sizer.capacity.atoms == expected


def test_disturbed_measurements_do_not_decide():
    random = np.random.default_rng(1)
    rate, sizer = crystal_rate(400), BatchSizer(100)
    for _ in range(40):
        size = BatchSize(sizer.capacity.atoms, 30 * sizer.capacity.atoms)
        slower = 10.0 if random.random() < 0.4 else 1.0
        sizer.fitted(size, slower * size.edges / rate(size.atoms))
    assert sizer.capacity.atoms == 400


def test_what_was_asked_for_stays_until_memory_ends():
    sizer = BatchSizer(500, fixed=True)
    for _ in range(10):
        sizer.fitted(BatchSize(500, 15_000), 1.0, Memory(1.0, 1e12))
    assert sizer.capacity == BatchSize(500)
    sizer.refused(BatchSize(480, 14_000))
    assert sizer.capacity == BatchSize(240, 7_000)


def test_edges_go_with_density():
    positions = np.random.default_rng(0).random((10, 3))
    thin = size_of(Structure(np.ones(10, dtype=np.int64), positions, 8.0 * np.eye(3)))
    dense = size_of(Structure(np.ones(10, dtype=np.int64), positions, 4.0 * np.eye(3)))
    assert dense.atoms == thin.atoms == 10
    assert dense.edges == pytest.approx(8 * thin.edges)
    assert thin.edges == pytest.approx(10 * 10 / 512 * 904.78, rel=1e-4)
