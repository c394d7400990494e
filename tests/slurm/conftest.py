"""A Slurm that lives as long as the tests of this folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import NoSlurmError, SlurmCluster, mpich_environment


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """Three nodes of 8 CPUs and 4 GPUs; skips where no Slurm can be started."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: the path of a socket has at most 107 characters
    cluster = SlurmCluster(folder)
    try:
        try:
            cluster.start()
        except NoSlurmError as error:
            pytest.skip(str(error))
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def mpich(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment that makes mpi4py load MPICH; empty where there is none."""
    return mpich_environment(tmp_path_factory.mktemp("mpich"))
