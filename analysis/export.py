"""Writes parts of an archive as single files that other tools open."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import ase.io
import h5py
import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.formats import UnknownFileTypeError
from phonopy.file_IO import write_FORCE_CONSTANTS
from phonopy.interface.phonopy_yaml import read_phonopy_yaml

from analysis.harmonic import ForceConstants, build_phonopy
from analysis.inputs import displacement_group, force_constants, supercell, trajectories
from analysis.settings import campaign_settings
from driver.archive.h5md import replicas
from driver.archive.outputs import OutputFile, OutputFolder, unrecognised
from driver.archive.reader import ArchiveView, open_archive
from driver.archive.records import ArchiveError
from driver.archive.verify import check_tasks, stored_tasks
from driver.errors import UsageError
from driver.structures.convert import to_ase

FORMATS = {
    "phonopy": "PATH.yaml with displacements, forces and force constants; without a suffix a folder with "
    "phonopy_params.yaml and FORCE_CONSTANTS",
    "h5md": "the trajectories as one H5MD file",
    "extxyz": "the trajectories as extended XYZ with energies, forces and momenta",
    "ase": "the relaxed structure, in the format that PATH's suffix names (.traj, .json, .db, .cif, ...)",
}
"""What `export` can write: name -> description."""

_NEEDS = {"phonopy": ("displace",), "h5md": ("dynamics",), "extxyz": ("displace", "dynamics"), "ase": ("relax",)}

_PHONOPY_MARK = "# Written by Latdyn\n"


def export(
    archive: str | Path,
    material: str,
    model: str,
    to: str,
    path: Path,
    *,
    distance_A: float | None = None,
    overwrite: bool = False,
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
        File to write; for phonopy, a folder if the name has no suffix.
    distance_A : float, optional
        phonopy: which set of displacements; default: the one that the campaign takes phonons from.
    overwrite : bool
        Replace a file that cannot be recognised as an earlier export. Never an archive.

    Raises
    ------
    UsageError
        If there is no such material, model or result; the message names what there is.
    ArchiveError
        If what was to be exported is damaged, or the output must not or cannot be written (`driver.archive.outputs`).
    """
    with open_archive(archive) as view:
        _check(view, material, model, to)
        if to == "phonopy" and not path.suffix:
            return _phonopy_folder(
                view, material, model, OutputFolder(path, "phonopy", overwrite, (view.path,)), distance_A
            )
        output = OutputFile(path, _RECOGNISED.get(to, unrecognised), overwrite, (view.path,))
        _check_intact(view, material, model, to)
        with output.writing() as made:
            if to == "phonopy":
                _phonopy_file(view, material, model, made, distance_A)
            else:
                write: Callable[[ArchiveView, str, str, Path], None]
                write = {"h5md": _h5md, "extxyz": _extxyz, "ase": _ase}[to]
                write(view, material, model, made)
    return [path]


def _check(view: ArchiveView, material: str, model: str, to: str) -> None:
    if to not in FORMATS:
        raise UsageError(f"no format {to!r}; there are {', '.join(FORMATS)}")
    for what, key, known in (("material", material, view.material_keys()), ("model", model, view.model_keys())):
        if key not in known:
            listed = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
            raise UsageError(f"no {what} {key!r} in {view.path}; there are {listed}")
    for stage in _NEEDS[to]:
        if not view.has(material, model, stage):
            raise UsageError(f"{material} / {model}: stage {stage}, which {to} needs, is not done in {view.path}")


def _check_intact(view: ArchiveView, material: str, model: str, to: str) -> None:
    """Raise `ArchiveError` if what is to be exported does not have its checksum."""
    tasks, problems = stored_tasks(view)
    stages = _NEEDS[to]
    wanted = [task for task in tasks if task.key.material == material and task.key.model == model]
    findings = [f for f in problems if f.key and (f.key.material, f.key.model) == (material, model)]
    findings += check_tasks(view, [task for task in wanted if task.key.stage in stages])
    if findings:
        raise ArchiveError(f"nothing exported, for this is damaged: {'; '.join(map(str, findings))}")


def _phonopy_folder(
    view: ArchiveView, material: str, model: str, output: OutputFolder, distance_A: float | None
) -> list[Path]:
    """Write what `phonopy.load("phonopy_params.yaml")` reads: the text stored with the displacements and forces, and
    the force constants that the campaign fitted to them."""
    _check_intact(view, material, model, "phonopy")
    constants, text = _phonopy_parts(view, material, model, distance_A)
    phonon = build_phonopy(constants)
    with output.writing() as folder:
        (folder / "phonopy_params.yaml").write_text(text)
        write_FORCE_CONSTANTS(constants.values, filename=folder / "FORCE_CONSTANTS", p2s_map=phonon.primitive.p2s_map)
    return [output.path / name for name in ("phonopy_params.yaml", "FORCE_CONSTANTS")]


def _phonopy_file(view: ArchiveView, material: str, model: str, path: Path, distance_A: float | None) -> None:
    """Write one file that `phonopy.load` reads, with the force constants in it."""
    constants, text = _phonopy_parts(view, material, model, distance_A)
    phonon = build_phonopy(constants)
    phonon.dataset = read_phonopy_yaml(io.StringIO(text)).dataset
    phonon.force_constants = constants.values  # a new dataset drops them
    contents = phonon.to_phonopy_yaml(settings={"force_sets": True, "displacements": True, "force_constants": True})
    path.write_text(_PHONOPY_MARK + str(contents))


def _phonopy_parts(
    view: ArchiveView, material: str, model: str, distance_A: float | None
) -> tuple[ForceConstants, str]:
    """Return the force constants at a distance of displacement, and phonopy's text with displacements and forces."""
    distance = distance_A if distance_A is not None else campaign_settings(view.header).bands_distance_A
    group = displacement_group(view, material, model, distance)
    text = view.read_text(material, model, "displace", f"{group}/phonopy_yaml")
    return force_constants(view, material, model, distance), text


def _is_phonopy_file(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline(len(_PHONOPY_MARK)) == _PHONOPY_MARK.encode()


def _is_h5md_file(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return str(file["h5md/creator"].attrs["name"]).startswith("Latdyn")
    except (OSError, RuntimeError, KeyError, ValueError):
        return False


_RECOGNISED: Mapping[str, Callable[[Path], bool]] = {"phonopy": _is_phonopy_file, "h5md": _is_h5md_file}
"""How an earlier export is told from other files. Other formats cannot be: they may hold what the user has added."""


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
    except OSError:
        raise
    except Exception as error:  # formats of many authors, each with errors of its own
        reason = "no such format" if isinstance(error, UnknownFileTypeError) else error
        raise UsageError(f"ASE cannot write {path.name} ({reason}); use .traj, .json, .db, .extxyz or .cif") from error
