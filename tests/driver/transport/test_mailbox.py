"""Messages as bytes; the rest of the mailbox is tested under the real mpirun (tests/mpi)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from driver.batch_size import BatchSize
from driver.messages import LeaseEnd
from driver.patience import patience_in
from driver.settings import ExecutionSettings
from driver.transport.mailbox import _packed, _unpacked


@dataclass(frozen=True)
class Load:
    name: str
    arrays: tuple[np.ndarray, ...]


@pytest.mark.parametrize("sizes", [(), (0,), (1, 7, 1000), (3, 0, 5)])
def test_arrays_come_through_bit_for_bit_aligned_and_writable(sizes):
    rng = np.random.default_rng(0)
    arrays = (*(rng.normal(size=(size, 3)) for size in sizes), np.arange(5, dtype=np.int8))
    there = _unpacked(_packed(Load("Ü", arrays)))
    assert there.name == "Ü"
    for ours, theirs in zip(arrays, there.arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert theirs.dtype == ours.dtype and theirs.flags.writeable and theirs.flags.aligned


def test_small_messages_come_through():
    message = LeaseEnd(3, BatchSize(80, 1000))
    assert _unpacked(_packed(message)) == message


def test_patience_is_known_before_the_configuration_is_composed():
    assert patience_in(["campaign=smoke", "execution.patience_s=20", "+execution.patience_s=30"]) == 30.0
    assert patience_in(["execution.patience_s=soon"]) == ExecutionSettings().patience_s
    assert patience_in([]) == ExecutionSettings().patience_s
