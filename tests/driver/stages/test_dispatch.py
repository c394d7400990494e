"""What a worker computes with: the right stage, and what counts as memory running out."""

from __future__ import annotations

import numpy as np
import pytest
import threadpoolctl
import torch

from driver.engine.memory import CPU_CAPACITY_ATOMS, default_capacity_atoms
from driver.settings import Settings
from driver.stages.dispatch import EngineRunner


@pytest.fixture
def runner() -> EngineRunner:
    return EngineRunner("cpu", 1, Settings("x"))


def test_real_allocation_failures_are_memory_running_out(runner):
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**14, dtype=torch.float64)
    assert runner.release_memory(caught.value)
    with pytest.raises(MemoryError) as numpy_error:
        np.empty(10**17)
    assert runner.release_memory(numpy_error.value)
    assert runner.release_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not runner.release_memory(RuntimeError("shapes do not match"))


def test_an_unknown_stage_is_named(runner):
    with pytest.raises(ValueError, match="no stage 'phonons'"):
        runner.run("phonons", [], None, lambda: False)  # type: ignore[arg-type]


def test_a_cpu_holds_about_one_supercell():
    assert default_capacity_atoms("cpu") == CPU_CAPACITY_ATOMS


def test_blas_does_not_fight_for_the_cores(runner):

    assert all(pool["num_threads"] == 1 for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas")
