"""Trajectories in the layout of H5MD 1.1 (de Buyl, Colberg, Höfling, Comput. Phys. Commun. 185, 1546 (2014)).

Each replica is an H5MD root of its own below its dynamics group, extended in place by each segment. Units module 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from driver.archive.reader import ArchiveView
from driver.archive.records import ArchiveError, Array
from driver.archive.schema import FORMAT_VERSION

Floats = npt.NDArray[np.floating[Any]]

H5MD_VERSION = (1, 1)
UNITS_VERSION = (1, 0)

_FRAME_ELEMENTS = {
    "particles/all/position": "angstrom",
    "particles/all/velocity": "angstrom fs-1",
    "particles/all/force": "eV angstrom-1",
    "observables/potential_energy": "eV",
    "observables/kinetic_energy": "eV",
}
_FIRST = "particles/all/position"


@dataclass(frozen=True)
class State:
    """Where a trajectory stands.

    Attributes
    ----------
    positions_A : (N, 3) float64
        Unwrapped, in angstrom.
    velocities_A_fs : (N, 3) float64
        In angstrom/fs.
    step : int
        Time steps done since the trajectory's start.
    """

    positions_A: npt.NDArray[np.float64]
    velocities_A_fs: npt.NDArray[np.float64]
    step: int


@dataclass(frozen=True)
class Trajectory:
    """One replica's frames; the state at step 0 is not among them.

    Attributes
    ----------
    numbers : (N,) int
        Atomic numbers.
    masses_u : (N,) float64
    cell_A : (3, 3) float64
        Lattice vectors of the supercell, one per row.
    positions_A : (F, N, 3)
        Unwrapped.
    velocities_A_fs, forces_eV_A : (F, N, 3)
    step : (F,) int64
    time_fs : (F,) float64
        Since the trajectory's start.
    potential_energy_eV, kinetic_energy_eV : (F,) float64
        Of the whole supercell.
    """

    numbers: npt.NDArray[np.int64]
    masses_u: npt.NDArray[np.float64]
    cell_A: npt.NDArray[np.float64]
    positions_A: Floats
    velocities_A_fs: Floats
    forces_eV_A: Floats
    step: npt.NDArray[np.int64]
    time_fs: npt.NDArray[np.float64]
    potential_energy_eV: npt.NDArray[np.float64]
    kinetic_energy_eV: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.step)


def trajectory_arrays(
    replica: int, frames: Trajectory, state: State, *, frame_dtype: str = "float32"
) -> tuple[dict[str, Array], dict[str, dict[str, Any]], dict[str, str]]:
    """Lay one replica's segment out as H5MD.

    Parameters
    ----------
    replica : int
    frames : Trajectory
        The frames of this segment.
    state : State
        At the segment's end.
    frame_dtype : str
        Of stored positions, velocities and forces; energies are stored as float64.

    Returns
    -------
    arrays, attributes, links : dict
        As `TaskResult` takes them; merge those of all replicas.
    """
    root = f"replica_{replica}"
    values = {
        "particles/all/position": frames.positions_A.astype(frame_dtype),
        "particles/all/velocity": frames.velocities_A_fs.astype(frame_dtype),
        "particles/all/force": frames.forces_eV_A.astype(frame_dtype),
        "observables/potential_energy": np.asarray(frames.potential_energy_eV, dtype=np.float64),
        "observables/kinetic_energy": np.asarray(frames.kinetic_energy_eV, dtype=np.float64),
    }
    arrays = {f"{root}/{name}/value": Array(values[name], units, True) for name, units in _FRAME_ELEMENTS.items()}
    arrays[f"{root}/{_FIRST}/step"] = Array(np.asarray(frames.step, dtype=np.int64), "", True)
    arrays[f"{root}/{_FIRST}/time"] = Array(np.asarray(frames.time_fs, dtype=np.float64), "fs", True)
    arrays |= _fixed_arrays(root, frames)
    arrays |= {
        f"{root}/state/position": Array(np.asarray(state.positions_A, dtype=np.float64)[None], "angstrom", True),
        f"{root}/state/velocity": Array(
            np.asarray(state.velocities_A_fs, dtype=np.float64)[None], "angstrom fs-1", True
        ),
        f"{root}/state/step": Array(np.array([state.step], dtype=np.int64), "", True),
    }
    links = {
        f"{root}/{name}/{shared}": f"{root}/{_FIRST}/{shared}"
        for name in _FRAME_ELEMENTS
        if name != _FIRST
        for shared in ("step", "time")
    }
    return arrays, _attributes(root, arrays), links


def replicas(view: ArchiveView, material: str, model: str) -> int:
    """Return how many replicas a material's dynamics has, 0 if it has none."""
    if not view.has(material, model, "dynamics"):
        return 0
    count = 0
    while view.has(material, model, "dynamics", f"replica_{count}"):
        count += 1
    return count


def read_trajectory(
    view: ArchiveView, material: str, model: str, replica: int = 0, *, frames: slice = slice(None)
) -> Trajectory:
    """Read one replica's trajectory, or a slice of its frames.

    Raises
    ------
    ArchiveError
        If the archive has none.
    """

    def read(path: str, which: slice | None = None) -> npt.NDArray[Any]:
        return view.read_array(material, model, "dynamics", f"replica_{replica}/{path}", which)

    return Trajectory(
        numbers=read("particles/all/species"),
        masses_u=read("particles/all/mass"),
        cell_A=read("particles/all/box/edges"),
        positions_A=read("particles/all/position/value", frames),
        velocities_A_fs=read("particles/all/velocity/value", frames),
        forces_eV_A=read("particles/all/force/value", frames),
        step=read("particles/all/position/step", frames),
        time_fs=read("particles/all/position/time", frames),
        potential_energy_eV=read("observables/potential_energy/value", frames),
        kinetic_energy_eV=read("observables/kinetic_energy/value", frames),
    )


def last_state(view: ArchiveView, material: str, model: str, replica: int, segment: int) -> State:
    """Return the state of a replica at the end of a segment.

    Raises
    ------
    ArchiveError
        If that segment is not in the archive.
    """

    def read(name: str) -> npt.NDArray[Any]:
        path = f"replica_{replica}/state/{name}"
        return view.read_array(material, model, "dynamics", path, slice(segment, segment + 1))

    step = read("step")
    if segment < 0 or len(step) == 0:
        raise ArchiveError(f"{material} / {model} / dynamics segment {segment} is not in {view.path}")
    return State(positions_A=read("position")[0], velocities_A_fs=read("velocity")[0], step=int(step[0]))


def _fixed_arrays(root: str, frames: Trajectory) -> dict[str, Array]:
    particles = f"{root}/particles/all"
    return {
        f"{particles}/species": Array(np.asarray(frames.numbers, dtype=np.int64)),
        f"{particles}/mass": Array(np.asarray(frames.masses_u, dtype=np.float64), "u"),
        f"{particles}/box/edges": Array(np.asarray(frames.cell_A, dtype=np.float64), "angstrom"),
    }


def _attributes(root: str, arrays: dict[str, Array]) -> dict[str, dict[str, Any]]:
    """Attributes that H5MD and its units module ask for; `unit` is that module's name for `units`."""
    attributes: dict[str, dict[str, Any]] = {
        f"{root}/h5md": {"version": np.array(H5MD_VERSION, dtype=np.int64)},
        f"{root}/h5md/author": {"name": "Latdyn"},
        f"{root}/h5md/creator": {"name": "Latdyn archive", "version": FORMAT_VERSION},
        f"{root}/h5md/modules/units": {"version": np.array(UNITS_VERSION, dtype=np.int64)},
        f"{root}/particles/all/box": {"dimension": np.int64(3), "boundary": np.array([b"periodic"] * 3)},
    }
    for path, array in arrays.items():
        if array.units:
            attributes[path] = {"unit": array.units.replace("angstrom", "Angstrom")}
    return attributes
