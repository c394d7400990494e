"""A rank killed or stopped under srun: the step ends in time, with everything that was committed."""

from __future__ import annotations

import signal

import pytest
from fault_matrix import Case, slurm_launchers, try_case

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]


@pytest.mark.parametrize("mpi", ["pmix", "pmi2"])
@pytest.mark.parametrize(
    "case",
    [Case(signal.SIGKILL, 1, "running"), Case(signal.SIGSTOP, 1, "before Hello"), Case(signal.SIGSTOP, 0, "running")],
    ids=str,
)
def test_the_step_ends_and_nothing_is_lost(cluster, mpich, tmp_path, mpi, case):
    launchers = {launcher.name: launcher for launcher in slurm_launchers(cluster, mpich)}
    launcher = launchers.get(f"srun --mpi={mpi}")
    if launcher is None:
        pytest.skip("no MPICH on this machine; tests/slurm/install.sh installs libmpich12 where it is root")
    ending = try_case(case, launcher, tmp_path)
    assert not ending.hung, ending.output
    assert ending.good, f"{ending}"
