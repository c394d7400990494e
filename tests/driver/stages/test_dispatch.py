"""What a worker computes with: the right stage, and what counts as memory running out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import threadpoolctl
import torch
from model_zoo import build_model, save_model

from driver.engine.memory import CPU_CAPACITY_ATOMS, default_capacity_atoms
from driver.settings import EngineSettings, Settings
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


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    ],
)
def test_memory_also_runs_out_in_the_libraries_of_a_gpu(runner, message):
    assert runner.release_memory(RuntimeError(message))
    assert not runner.release_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_says_that_preparing_takes_long_and_that_it_failed(tmp_path):
    """Before it begins; and nothing where all is there, or where the reference was asked for."""
    takes, cannot = (save_model(build_model(name, seed=1), tmp_path / f"{name}.model") for name in ("mp-0", "mh-1"))
    settings = Settings("x", engine=EngineSettings(cache=str(tmp_path / "cache")))
    runner = EngineRunner("cpu", 1, settings)
    said = runner.check([takes])
    assert next(said) == f"model {takes.key}: preparing symmetrix in float32; takes minutes, once per kind of CPU"
    assert not (tmp_path / "cache").exists()
    assert list(said) == []
    assert list(EngineRunner("cpu", 1, settings).check([takes])) == []
    old = replace(settings, engine=EngineSettings(evaluator="torch", cache=str(tmp_path / "other")))
    assert list(EngineRunner("cpu", 1, old).check([takes, cannot])) == []
    assert not (tmp_path / "other").exists()
    *_, last = runner.check([cannot])
    assert last.startswith(f"model {cannot.key}: torch instead of symmetrix: symmetrix-xl ")


def test_an_unknown_stage_is_named(runner):
    with pytest.raises(ValueError, match="no stage 'phonons'"):
        runner.run("phonons", [], None, lambda: False)  # type: ignore[arg-type]


def test_a_cpu_holds_about_one_supercell():
    assert default_capacity_atoms("cpu") == CPU_CAPACITY_ATOMS


def test_blas_does_not_fight_for_the_cores(runner):

    assert all(pool["num_threads"] == 1 for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas")
