"""Memory of a device: how much there is for a batch, how much one has needed, and what its end looks like."""

from __future__ import annotations

import torch

from driver.batch_size import Memory

CPU_CAPACITY_ATOMS = 100
"""Atoms of a first batch on a CPU: about one supercell."""

GPU_BYTES_PER_ATOM = 6e6
"""Before anything is measured: generous for a medium MACE at 6 angstrom in float32."""


def default_capacity_atoms(device: torch.device | str) -> int:
    """Atoms that a batch may have on a device, before anything has been measured."""
    device = torch.device(device)
    if device.type != "cuda":
        return CPU_CAPACITY_ATOMS
    free, _ = torch.cuda.mem_get_info(device)
    return max(CPU_CAPACITY_ATOMS, int(0.7 * free / GPU_BYTES_PER_ATOM))


class MemoryMeter:
    """Measures what is allocated at the peak of a piece of work, beyond what was there before.

    Parameters
    ----------
    device : torch.device or str
        On others than GPUs there is nothing to measure: a CPU's batches end with its caches, not with its memory.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._before = 0

    def start(self) -> None:
        """Measure from here."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)

    def read(self) -> Memory | None:
        """Return what was needed since `start`; None where nothing is measured."""
        if self._device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self._device) - self._before
        free, _ = torch.cuda.mem_get_info(self._device)
        return Memory(peak, free + torch.cuda.memory_reserved(self._device) - self._before)


_RAN_OUT = (
    "can't allocate memory",  # torch, on the host
    "CUDA error: out of memory",  # the driver: pinned memory, contexts, memory that another process holds
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuSOLVER and others, for their handles and workspaces
)
"""In messages of exceptions that have no type of their own."""


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory has run out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(phrase in str(error) for phrase in _RAN_OUT)
