"""Which GPU, or how many threads."""

from __future__ import annotations

import os

import pytest

from driver.devices import assign_device, assign_threads, job_has_gpus
from driver.errors import UsageError


def test_one_visible_gpu_is_index_zero_for_every_rank():
    assert [assign_device("auto", i, 1, 1) for i in (0,)] == ["cuda:0"]
    assert [assign_device("auto", i, 4, 1) for i in range(4)] == ["cuda:0"] * 4


def test_ranks_that_share_gpus_go_in_blocks():
    assert [assign_device("cuda", i, 4, 2) for i in range(4)] == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert [assign_device("auto", i, 6, 4) for i in range(6)] == [f"cuda:{g}" for g in (0, 0, 1, 2, 2, 3)]


def test_fewer_ranks_than_gpus_take_the_first():
    assert [assign_device("auto", i, 2, 4) for i in range(2)] == ["cuda:0", "cuda:1"]


def test_no_gpu():
    assert assign_device("auto", 0, 1, 0) == "cpu"
    assert assign_device("cpu", 0, 1, 4) == "cpu"
    with pytest.raises(UsageError, match="sees 0 GPUs and needs number 0"):
        assign_device("cuda", 0, 1, 0)
    with pytest.raises(UsageError, match="sees 2 GPUs and needs number 2"):
        assign_device("cuda:2", 0, 1, 2)


def test_threads_are_a_fair_share(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert assign_threads(None, 1) == 8
    assert assign_threads(None, 3) == 2
    assert assign_threads(None, 100) == 1
    assert assign_threads(5, 3) == 5


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_JOB_GPUS": "0,1"},
        {"SLURM_JOB_GPUS": "0"},
        {"SLURM_GPUS_ON_NODE": "4"},
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "MIG-5c89852c"},
        {"ROCR_VISIBLE_DEVICES": "1"},
        {"PBS_GPUFILE": "/var/spool/pbs/aux/7gpu"},
    ],
)
def test_a_job_with_gpus_is_known_by_its_environment(environment):
    assert job_has_gpus(environment)
    with pytest.raises(UsageError, match="the job has GPUs but torch sees none"):
        assign_device("auto", 0, 1, 0, gpus_expected=job_has_gpus(environment))
    assert assign_device("cpu", 0, 1, 0, gpus_expected=True) == "cpu"
    assert assign_device("auto", 1, 2, 2, gpus_expected=True) == "cuda:1"


@pytest.mark.parametrize(
    "environment", [{}, {"CUDA_VISIBLE_DEVICES": ""}, {"CUDA_VISIBLE_DEVICES": "-1"}, {"SLURM_GPUS_ON_NODE": "0"}]
)
def test_a_job_without_gpus_runs_on_cpus(environment):
    assert not job_has_gpus(environment)
    assert assign_device("auto", 0, 1, 0, gpus_expected=job_has_gpus(environment)) == "cpu"
