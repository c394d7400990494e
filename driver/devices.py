"""Which GPU, or how many threads, a rank has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from driver.errors import UsageError


@dataclass(frozen=True)
class DeviceAssignment:
    """What a worker computes on: `device` in torch's notation ("cpu", "cuda:1"), and its CPU threads."""

    device: str
    threads: int


_GPU_VARIABLES = (
    "SLURM_JOB_GPUS",
    "SLURM_STEP_GPUS",
    "SLURM_GPUS",
    "SLURM_GPUS_ON_NODE",
    "SLURM_GPUS_PER_NODE",
    "SLURM_GPUS_PER_TASK",
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "PBS_GPUFILE",
)
_NO_GPU = ("", "0", "-1", "NoDevFiles", "none")


def job_has_gpus(environment: Mapping[str, str]) -> bool:
    """Whether the batch system or the launcher has given this rank, or its job, GPUs.

    Parameters
    ----------
    environment : mapping
        Of this process.
    """
    for name in _GPU_VARIABLES:
        value = environment.get(name, "").strip()
        # "0" is a number of GPUs in some of them, and the first GPU in the others.
        if value and (value not in _NO_GPU or (value == "0" and not name.startswith("SLURM_GPUS"))):
            return True
    return False


def assign_device(requested: str, worker: int, workers: int, gpus: int, *, gpus_expected: bool = False) -> str:
    """Choose the device of a worker on its node.

    Parameters
    ----------
    requested : str
        auto, cpu, cuda, or one device as "cuda:0".
    worker, workers : int
        Index of the worker among those of its node, and their number. The master is not counted.
    gpus : int
        GPUs that this rank sees. One: a launcher has bound it already, so index 0 is right for every rank. More:
        workers that share a GPU go in blocks (0,0,1,1), which keeps neighbours in rank on one device.
    gpus_expected : bool
        The job has GPUs (see `job_has_gpus`), so that auto does not mean CPU.

    Raises
    ------
    UsageError
        If a GPU is asked for, or the job has one, and none is visible.
    """
    if requested == "cpu" or (requested == "auto" and gpus == 0 and not gpus_expected):
        return "cpu"
    if requested == "auto" and gpus == 0:
        raise UsageError(
            "the job has GPUs but torch sees none: a broken GPU or driver, or a CPU build of torch; check "
            "`nvidia-smi` and `python -c 'import torch; print(torch.version.cuda)'`, or set execution.device=cpu"
        )
    if requested.startswith("cuda:"):
        index = int(requested.removeprefix("cuda:"))
    else:
        index = worker * gpus // max(workers, 1) if workers > gpus else worker
    if index >= gpus:
        raise UsageError(
            f"execution.device={requested}: this rank sees {gpus} GPUs and needs number {index}; "
            "check the job's GPU request (--gpus-per-task=1) or set execution.device=cpu"
        )
    return f"cuda:{index}"


def assign_threads(requested: int | None, core_sharers: int) -> int:
    """CPU threads of a worker.

    Parameters
    ----------
    requested : int or None
        A fixed number, or None for a fair share of the cores that this process may run on.
    core_sharers : int
        Workers that may run on the same cores (1 where a launcher has bound each to cores of its own).
    """
    if requested is not None:
        return max(1, requested)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(core_sharers, 1))
