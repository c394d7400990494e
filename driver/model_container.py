"""What a file that is said to be a model is, by its first bytes. Runs nothing of what is in it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from driver.errors import UsageError

_REMEDY = "copy or fetch it again, or check its source"
_HEAD_BYTES = 64
_PICKLE = b"\x80"
"""First byte of a pickle of protocol 2 or later: files of torch before 1.6."""


def refuse_other_files(path: Path, where: str, remedy: str = _REMEDY) -> None:
    """Refuse what cannot be a saved model.

    Parameters
    ----------
    path : Path
    where : str
        How messages name it.
    remedy : str
        What to do about a damaged file.

    Raises
    ------
    UsageError
        One line that says what the file is instead.
    """
    if not path.exists():
        raise UsageError(f"{where}: no such file; `python -m driver models fetch` downloads the foundation models")
    if path.is_dir():
        raise UsageError(f"{where} is a folder, not a model; give the .model file itself")
    if not path.is_file():
        raise UsageError(f"{where} is not a regular file; give the .model file itself")
    try:
        reason = _mistaken(path, remedy)
    except OSError as error:
        raise UsageError(f"{where} cannot be read ({error.strerror}); check its permissions") from error
    if reason:
        raise UsageError(f"{where} {reason}")


def _mistaken(path: Path, remedy: str) -> str:
    """Return what is wrong with a file, and what to do; "" if it may be a model."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head:
        return f"is empty (0 bytes); {remedy}"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the model; run `git lfs pull` or download the file itself"
    if head.lstrip()[:1] == b"<":
        return "is a web page, not a model; download the file itself"
    if head.startswith(b"PK"):
        return _mistaken_zip(path, remedy)
    if not head.startswith(_PICKLE):
        begins = repr(head[:16].decode("latin-1")) if head[:16].isascii() else head[:8].hex(" ")
        return f"is not a model: it begins with {begins}; give a .model file saved by mace-torch"
    return ""


def _mistaken_zip(path: Path, remedy: str) -> str:
    """Tell what torch.save writes from other archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError):
        return f"is truncated or damaged ({path.stat().st_size} bytes); {remedy}"
    if "constants.pkl" in names:
        return "is a compiled (TorchScript) model; use the plain .model file it was made from"
    if "data.pkl" not in names:
        return "is a ZIP archive without a model in it; if it was packed, unpack it"
    return ""
