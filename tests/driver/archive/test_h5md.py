"""Trajectories: what H5MD 1.1 asks for, and what comes back."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from archive_samples import FRAMES, attempt, dynamics_result, frames, new_archive

from driver.archive.h5md import last_state, read_trajectory, replicas
from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError

SEGMENTS = 3


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "archive.h5"
    with new_archive(path) as writer:
        for segment in range(SEGMENTS):
            writer.commit([attempt(dynamics_result("A", "m", segment, replicas=2))])
    return path


def test_each_replica_is_an_h5md_file(path: Path) -> None:
    """The required elements and attributes of the specification, version 1.1, and of its units module."""
    with h5py.File(path) as archive:
        for root in archive["materials/A/m/dynamics"].values():
            assert list(root["h5md"].attrs["version"]) == [1, 1]
            assert isinstance(root["h5md/author"].attrs["name"], str)
            assert isinstance(root["h5md/creator"].attrs["name"], str)
            assert isinstance(root["h5md/creator"].attrs["version"], str)
            assert list(root["h5md/modules/units"].attrs["version"]) == [1, 0]
            group = root["particles/all"]
            assert group["box"].attrs["dimension"] == 3
            assert list(group["box"].attrs["boundary"]) == [b"periodic"] * 3
            assert group["box/edges"].shape == (3, 3)
            assert group["species"].shape == group["mass"].shape == (4,)
            assert np.issubdtype(group["species"].dtype, np.integer)
            for element in ("position", "velocity", "force"):
                assert group[element]["value"].shape == (SEGMENTS * FRAMES, 4, 3)
                assert group[element]["value"].dtype == np.float32
            for element in ("potential_energy", "kinetic_energy"):
                assert root["observables"][element]["value"].shape == (SEGMENTS * FRAMES,)
                assert root["observables"][element]["value"].dtype == np.float64


def test_step_and_time_are_stored_once(path: Path) -> None:
    with h5py.File(path) as archive:
        root = archive["materials/A/m/dynamics/replica_1"]
        position = root["particles/all/position"]
        assert np.all(np.diff(position["step"]) > 0)
        for element in ("particles/all/velocity", "particles/all/force", "observables/potential_energy"):
            for shared in ("step", "time"):
                assert root[element][shared] == position[shared]
                assert len(root[element][shared]) == len(root[element]["value"])
        np.testing.assert_array_equal(position["time"], position["step"][()] * 2.0)


@pytest.mark.parametrize(
    ("element", "unit"),
    [
        ("particles/all/position/value", "Angstrom"),
        ("particles/all/velocity/value", "Angstrom fs-1"),
        ("particles/all/force/value", "eV Angstrom-1"),
        ("particles/all/position/time", "fs"),
        ("particles/all/box/edges", "Angstrom"),
        ("particles/all/mass", "u"),
        ("observables/kinetic_energy/value", "eV"),
    ],
)
def test_units(path: Path, element: str, unit: str) -> None:
    """`unit` is H5MD's name, `units` that of the rest of the archive."""
    with h5py.File(path) as archive:
        attributes = archive["materials/A/m/dynamics/replica_0"][element].attrs
        assert attributes["unit"] == unit
        assert attributes["units"] == unit.replace("Angstrom", "angstrom")


def test_trajectory_comes_back(path: Path) -> None:
    with open_archive(path) as view:
        assert (replicas(view, "A", "m"), replicas(view, "B", "m")) == (2, 0)
        for replica in range(2):
            read = read_trajectory(view, "A", "m", replica)
            given = [frames("A", segment, replica) for segment in range(SEGMENTS)]
            for name in ("positions_A", "velocities_A_fs", "forces_eV_A"):
                expected = np.concatenate([getattr(trajectory, name) for trajectory, _ in given]).astype(np.float32)
                np.testing.assert_array_equal(getattr(read, name), expected)
            for name in ("step", "time_fs", "potential_energy_eV", "kinetic_energy_eV"):
                expected = np.concatenate([getattr(trajectory, name) for trajectory, _ in given])
                np.testing.assert_array_equal(getattr(read, name), expected)
            for name in ("numbers", "masses_u", "cell_A"):
                np.testing.assert_array_equal(getattr(read, name), getattr(given[0][0], name))
            for segment, (_, state) in enumerate(given):
                found = last_state(view, "A", "m", replica, segment)
                np.testing.assert_array_equal(found.positions_A, state.positions_A)
                np.testing.assert_array_equal(found.velocities_A_fs, state.velocities_A_fs)
                assert found.step == state.step


def test_slices_of_a_trajectory(path: Path) -> None:
    with open_archive(path) as view:
        whole, part = read_trajectory(view, "A", "m"), read_trajectory(view, "A", "m", frames=slice(4, 11, 3))
        assert len(part) == 3
        np.testing.assert_array_equal(part.positions_A, whole.positions_A[4:11:3])
        np.testing.assert_array_equal(part.step, whole.step[4:11:3])


def test_missing_ones_are_named(path: Path) -> None:
    with open_archive(path) as view:
        with pytest.raises(ArchiveError, match="A / m / dynamics segment 3"):
            last_state(view, "A", "m", 0, 3)
        with pytest.raises(ArchiveError, match="B / m / dynamics is not done"):
            read_trajectory(view, "B", "m")
        with pytest.raises(ArchiveError, match="replica_2"):
            read_trajectory(view, "A", "m", 2)
