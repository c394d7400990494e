"""Materials from files: structures in any format that ASE reads, and lists of formulas."""

from __future__ import annotations

import contextlib
import csv
import re
import sqlite3
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.io.formats import UnknownFileTypeError, filetype

from driver.archive.records import RefusedMaterial, Structure
from driver.errors import UsageError
from driver.structures.convert import from_ase

_COMPRESSED = {".gz", ".bz2", ".xz"}

_REASON_LENGTH = 120
"""Characters of an error of ASE that are shown; some quote the whole file."""


@dataclass(frozen=True)
class NamedStructure:
    """A structure, the key it goes by, and the file (and frame) it comes from."""

    key: str
    structure: Structure
    source: str


@dataclass(frozen=True)
class _Frame:
    name: str
    """What tells it from other frames of the file; "" if it is the only one."""
    info: Mapping[str, Any]
    atoms: Atoms | None
    error: str = ""


def find_files(pattern: str, base_dir: Path) -> list[Path]:
    """Return the files that a pattern names, sorted.

    Parameters
    ----------
    pattern : str
        A file, a folder (all its files that are not hidden, without subfolders), or a glob (`**` crosses folders);
        relative to `base_dir` unless absolute.

    Raises
    ------
    UsageError
        If there is no such file.
    """
    if not pattern.strip():
        raise UsageError('materials.structures: an entry is empty; name a file, a folder (".") or a pattern ("*.cif")')
    path = Path(base_dir, expanded(pattern))
    try:
        found = [path] if _is_file(path) else _matches(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"materials.structures: cannot look for {path} ({error})") from error
    if not found:
        remedy = "there is no such file or folder" if not path.exists() else "it is an empty folder"
        raise UsageError(f"materials.structures: no file matches {path}: {remedy}")
    return sorted(found)


def expanded(path: str) -> Path:
    """Return a path as a shell would: `~` is the home folder.

    Raises
    ------
    UsageError
        If there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: nobody has that home folder; write the whole path") from error


def _matches(path: Path) -> list[Path]:
    """Return the visible files of a folder, or those that a glob names; what exists literally is no pattern."""
    if path.is_dir():
        return [child for child in path.iterdir() if _is_file(child) and not child.name.startswith(".")]
    folder, parts = Path(path.anchor), list(path.relative_to(path.anchor).parts)
    while parts and (folder / parts[0]).exists():
        folder /= parts.pop(0)
    return [match for match in folder.glob(str(Path(*parts))) if _is_file(match)] if parts else []


def _is_file(path: Path) -> bool:
    """Also true of a link that leads nowhere: reading it says so."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def read_structures(path: Path, *, key_field: str = "") -> list[NamedStructure | RefusedMaterial]:
    """Return every structure in a file, in order, or what is wrong with it.

    The key of a structure is its entry `key_field` (of an ASE database's key-value pairs, or of the comment line of
    extended XYZ); without `key_field` the entry `key` or `name` where there is one; else the file's name without its
    extension, followed by `-<index>` (ASE database: `-<id>`) if the file holds several. POSCAR and CONTCAR take the
    name of their folder. Characters other than letters, digits and `._+()-` become `_`.

    Parameters
    ----------
    path : Path
    key_field : str
    """
    stem = _stem(path)
    results: list[NamedStructure | RefusedMaterial] = []
    for frame in _frames(path):
        fallback = f"{stem}-{frame.name}" if frame.name else stem
        source = f"{path} [{frame.name}]" if frame.name else str(path)
        fields = [key_field] if key_field else ["key", "name"]
        named = [str(frame.info[name]) for name in fields if str(frame.info.get(name, "")).strip()]
        key = _clean(named[0] if named else fallback)
        error = frame.error or (f"has no entry {key_field!r} to be named after" if key_field and not named else "")
        if frame.atoms is not None and not error:
            error = _defect(frame.atoms)
        if frame.atoms is None or error:
            results.append(RefusedMaterial(key, source, error))
        else:
            results.append(NamedStructure(key, from_ase(frame.atoms), source))
    return results


def read_formulas(path: Path) -> list[tuple[str, str]]:
    """Return (formula, source) for each entry of a list of formulas.

    Parameters
    ----------
    path : Path
        A CSV file (`,` or `;`) with a column `formula`, or a text file with one formula per line, `#` before comments.

    Raises
    ------
    UsageError
        If the file cannot be read, has no such column, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"materials.formulas_file: cannot read {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"materials.formulas_file: {path} is not a text file in UTF-8; save it as one") from error
    entries = _csv_formulas(path, text) if path.suffix.lower() == ".csv" else _plain_formulas(text)
    formulas = [(formula, f"{path} line {line}") for line, formula in entries if formula]
    if not formulas:
        raise UsageError(f"materials.formulas_file: {path} holds no formula")
    return formulas


def _plain_formulas(text: str) -> Iterator[tuple[int, str]]:
    for line, content in enumerate(text.splitlines(), start=1):
        yield line, content.split("#")[0].strip()


def _csv_formulas(path: Path, text: str) -> Iterator[tuple[int, str]]:
    head = text.partition("\n")[0]
    reader = csv.DictReader(text.splitlines(), delimiter=";" if ";" in head and "," not in head else ",")
    columns = [name for name in reader.fieldnames or [] if name.strip().lower() == "formula"]
    if not columns:
        found = ", ".join(reader.fieldnames or []) or "none"
        raise UsageError(f"materials.formulas_file: {path} has no column 'formula' (columns: {found})")
    for row in reader:
        yield reader.line_num, (row[columns[0]] or "").strip()


def _frames(path: Path) -> list[_Frame]:
    """Read a whole file; what cannot be read becomes a last frame with an error."""
    frames: list[_Frame] = []
    failure = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ASE, about details of formats
            for frame in _database_rows(path) if path.suffix == ".db" else _file_frames(path):
                frames.append(frame)
        if not frames:
            failure = "holds no structure" if path.stat().st_size else "is empty"
    except OSError as error:
        failure = f"cannot be read ({error.strerror or error})"
    # ASE's readers raise whatever their parsing runs into, bare AssertionErrors included.
    except Exception as error:
        failure = _unreadable(path, error)
    if failure:
        frames.append(_Frame(str(len(frames)) if frames else "", {}, None, failure))
    elif len(frames) == 1:
        return [_Frame("", frames[0].info, frames[0].atoms)]
    return frames


def _file_frames(path: Path) -> Iterator[_Frame]:
    """Read by this process alone: ASE would otherwise read on rank 0 and broadcast to all ranks, who do not listen."""
    if path.stat().st_size:
        frames = ase.io.iread(path, index=":", parallel=False, do_not_split_by_at_sign=True)
        for index, atoms in enumerate(frames):
            yield _Frame(str(index), atoms.info, atoms)


def _database_rows(path: Path) -> Iterator[_Frame]:
    """Read an ASE database; `serial` as for files."""
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    if "systems" not in tables:  # ASE would make itself at home in it
        if tables:
            raise ValueError("a database of something else")
        return
    for row in ase.db.connect(path, serial=True).select():
        yield _Frame(str(row.id), dict(row.key_value_pairs), row.toatoms())


def _unreadable(path: Path, error: Exception) -> str:
    """Say in one line why a file is no structure, in the words of ASE where they help."""
    if isinstance(error, UnknownFileTypeError):
        return "is in no format that ASE recognises by name or content; give it the extension of its format"
    kind = "ASE database" if path.suffix == ".db" else f"{_format(path)} file"
    reason = " ".join(str(error).split())
    if isinstance(error, UnicodeDecodeError):
        reason = "not a text file"
    elif isinstance(error.__cause__, StopIteration):
        reason = "it ends too early"
    elif isinstance(error, LookupError):
        reason = f"{type(error).__name__}: {reason}"
    shown = reason if len(reason) <= _REASON_LENGTH else reason[:_REASON_LENGTH] + "..."
    return f"is not a valid {kind}{f' ({shown})' if shown else ''}"


def _format(path: Path) -> str:
    """Return ASE's name of a file's format."""
    try:
        return str(filetype(str(path)))
    except Exception:  # whatever stands in it
        return path.suffix.removeprefix(".")


def _defect(atoms: Atoms) -> str:
    """Say why atoms are no crystal that can be run; "" if they are.

    Overlapping atoms are let through: they are a matter of the task, and one of them must not hold a campaign up.
    """
    if len(atoms) == 0:
        return "holds no atoms"
    if atoms.cell.rank < 3 or abs(atoms.cell.volume) < 1e-6:
        return "has no three-dimensional cell"
    if not atoms.pbc.all():
        return "is not periodic in all three directions"
    if not (np.isfinite(atoms.positions).all() and np.isfinite(atoms.cell.array).all()):
        return "has positions or a cell that are not finite"
    if (atoms.numbers < 1).any():
        return "has atoms of no element"
    for occupancies in atoms.info.get("occupancy", {}).values():
        if len(occupancies) > 1 or min(occupancies.values()) < 0.999:
            shares = ", ".join(f"{symbol} {share:g}" for symbol, share in occupancies.items())
            return f"has a partially occupied site ({shares}); give an ordered structure"
    return ""


def _stem(path: Path) -> str:
    name = path.with_suffix("").name if path.suffix in _COMPRESSED else path.name
    generic = re.fullmatch(r"(?:POSCAR|CONTCAR)[._-]?(.*)", name)
    if generic:
        return generic[1] or path.resolve().parent.name
    return Path(name).stem


def _clean(key: str) -> str:
    cleaned = re.sub(r"[^A-Za-z0-9._+()-]", "_", key.strip())
    return re.sub(r"^\.", "_", cleaned)
