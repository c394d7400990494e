"""Writes parts of an archive as single files that other tools open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ase.io
import h5py
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import UnknownFileTypeError
from phonopy.file_IO import write_FORCE_CONSTANTS

from analysis.harmonic import build_phonopy
from analysis.inputs import displacement_group, force_constants, supercell, trajectories
from analysis.settings import campaign_settings
from driver.archive.h5md import replicas
from driver.archive.reader import ArchiveView, open_archive
from driver.errors import UsageError
from driver.structures.convert import to_ase

FORMATS = {
    "phonopy": "a folder with phonopy_params.yaml and FORCE_CONSTANTS",
    "h5md": "the trajectories as one H5MD file",
    "extxyz": "the trajectories as extended XYZ with energies, forces and momenta",
    "ase": "the relaxed structure, in the format that PATH's suffix names (.traj, .json, .db, .cif, ...)",
}
"""What `export` can write: name -> description."""

_NEEDS = {"phonopy": "displace", "h5md": "dynamics", "extxyz": "dynamics", "ase": "relax"}


def export(
    archive: str | Path, material: str, model: str, to: str, path: Path, *, distance_A: float | None = None
) -> list[Path]:
    """Write one material with one model in a format of `FORMATS`; return the files written.

    Parameters
    ----------
    archive : str or Path
    material, model : str
        Keys.
    to : str
        Name of the format.
    path : Path
        File, or for phonopy folder, to write; a file that exists is replaced.
    distance_A : float, optional
        phonopy: which set of displacements; default: the one that the campaign takes phonons from.

    Raises
    ------
    UsageError
        If there is no such material, model or result; the message names what there is.
    """
    with open_archive(archive) as view:
        _check(view, material, model, to)
        path.parent.mkdir(parents=True, exist_ok=True)
        if to == "phonopy":
            distance = distance_A if distance_A is not None else campaign_settings(view.header).bands_distance_A
            return _phonopy(view, material, model, path, distance)
        write: Callable[[ArchiveView, str, str, Path], None] = {"h5md": _h5md, "extxyz": _extxyz, "ase": _ase}[to]
        write(view, material, model, path)
    return [path]


def _check(view: ArchiveView, material: str, model: str, to: str) -> None:
    if to not in FORMATS:
        raise UsageError(f"no format {to!r}; there are {', '.join(FORMATS)}")
    for what, key, known in (("material", material, view.material_keys()), ("model", model, view.model_keys())):
        if key not in known:
            listed = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            raise UsageError(f"no {what} {key!r} in {view.path}; there are {listed}")
    if not view.has(material, model, _NEEDS[to]):
        raise UsageError(f"{material} / {model}: stage {_NEEDS[to]}, which {to} needs, is not done in {view.path}")


def _phonopy(view: ArchiveView, material: str, model: str, folder: Path, distance_A: float | None) -> list[Path]:
    """Write what `phonopy.load("phonopy_params.yaml")` reads: the text stored with the displacements and forces, and
    the force constants that the campaign fitted to them."""
    group = displacement_group(view, material, model, distance_A)
    constants = force_constants(view, material, model, distance_A)
    phonon = build_phonopy(constants)
    folder.mkdir(parents=True, exist_ok=True)
    parameters, fitted = folder / "phonopy_params.yaml", folder / "FORCE_CONSTANTS"
    parameters.write_text(view.read_text(material, model, "displace", f"{group}/phonopy_yaml"))
    write_FORCE_CONSTANTS(constants.values, filename=fitted, p2s_map=phonon.primitive.p2s_map)
    return [parameters, fitted]


def _h5md(view: ArchiveView, material: str, model: str, path: Path) -> None:
    """Copy the trajectories into a file of their own: particles/all, or particles/replica_<i> where there are several.

    Element names stay as the archive stores them; hard links (one step and time for all elements) are kept. Edges
    of the box are repeated for each frame and forces are in kJ mol-1 Angstrom-1, as MDAnalysis wants them.
    """
    source = view.group(material, model, "dynamics")
    count = replicas(view, material, model)
    with h5py.File(path, "w") as target:
        first = source["replica_0"]
        first.copy("h5md", target)
        for group in ("particles", "observables"):
            target.create_group(group)
        for replica in range(count):
            name = "all" if count == 1 else f"replica_{replica}"
            _copy_replica(source[f"replica_{replica}"], target, name, alone=count == 1)


def _copy_replica(source: h5py.Group, target: h5py.File, name: str, *, alone: bool) -> None:
    # One copy of the whole replica keeps hard links; its parts are then named again where H5MD wants them.
    temporary = f"__{name}"
    source.copy(source, target, name=temporary)
    target[f"particles/{name}"] = target[f"{temporary}/particles/all"]
    observables = "observables" if alone else f"observables/{name}"
    target.require_group(observables)
    for observable in target[f"{temporary}/observables"]:
        target[f"{observables}/{observable}"] = target[f"{temporary}/observables/{observable}"]
    del target[temporary]
    particles = target[f"particles/{name}"]
    _repeat_edges(particles)
    force = particles["force/value"]
    force[...] = force[...] * (units.mol / units.kJ)
    force.attrs["unit"] = "kJ mol-1 Angstrom-1"
    if "units" in force.attrs:
        force.attrs["units"] = "kJ mol-1 angstrom-1"


def _repeat_edges(particles: h5py.Group) -> None:
    """Turn the fixed edges of the box into a time-dependent element."""
    fixed = particles["box/edges"]
    cell, attributes = fixed[...], dict(fixed.attrs)
    del particles["box/edges"]
    edges = particles.create_group("box/edges")
    for shared in ("step", "time"):
        edges[shared] = particles[f"position/{shared}"]
    frames = len(particles["position/step"])
    edges["value"] = np.broadcast_to(cell, (frames, 3, 3))
    edges["value"].attrs.update(attributes)


def _extxyz(view: ArchiveView, material: str, model: str, path: Path) -> None:
    """Write every frame with time_fs, replica, energy (eV), forces (eV/angstrom) and momenta (ASE's units)."""
    cell = supercell(view, material, model)
    masses = view.read_array(material, model, "displace", "supercell/masses")
    with path.open("w") as file:
        for replica, trajectory in enumerate(trajectories(view, material, model)):
            for frame, time in enumerate(trajectory.time_fs):
                atoms = Atoms(cell.numbers, trajectory.positions_A[frame], cell=cell.cell, pbc=True, masses=masses)
                atoms.set_velocities(np.asarray(trajectory.velocities_A_fs[frame], dtype=np.float64) / units.fs)
                atoms.info = {"time_fs": float(time), "replica": replica}
                atoms.calc = SinglePointCalculator(
                    atoms,
                    energy=float(trajectory.potential_energy_eV[frame]),
                    forces=np.asarray(trajectory.forces_eV_A[frame], dtype=np.float64),
                )
                ase.io.write(file, atoms, format="extxyz", append=True)


def _ase(view: ArchiveView, material: str, model: str, path: Path) -> None:
    """Write the relaxed structure with its energy, forces and stress."""
    atoms = to_ase(view.relaxed(material, model))
    table = view.table("relax")
    (row, *_) = np.flatnonzero((table["material"] == material) & (table["model"] == model))[::-1]
    stress = view.read_array(material, model, "relax", "stress")
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=float(table["energy_eV"][row]),
        forces=view.read_array(material, model, "relax", "forces"),
        stress=stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],
    )
    atoms.info = {"material": material, "model": model}
    try:
        ase.io.write(path, atoms)
    except UnknownFileTypeError as error:
        raise UsageError(
            f"{path}: ASE knows no format of that suffix; use .traj, .json, .db, .extxyz or .cif"
        ) from error
