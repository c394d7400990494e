"""What this user has agreed to: model files that may be loaded, by their sha256, and licences.

Loading a model file runs whatever code it contains. So a file is loaded only if its sha256 stands in the catalogue or
in the configuration, or is remembered here. Each thing is a small file of its own (`models/<sha256>.json`,
`licences/<name>.json`), written under another name and renamed: several processes at once need no lock.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from driver.atomic import write_atomically
from driver.errors import UsageError

TRUST_VARIABLE = "LATDYN_TRUST"


def trust_folder() -> Path:
    """Return where it is remembered: $LATDYN_TRUST, else latdyn/trust in $XDG_CONFIG_HOME or ~/.config."""
    chosen = os.environ.get(TRUST_VARIABLE)
    if not chosen:
        chosen = str(Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config", "latdyn", "trust"))
    return Path(chosen).expanduser().absolute()


def is_trusted(sha256: str) -> bool:
    """Tell whether files with this content may be loaded."""
    return _read(_model(sha256)).get("sha256") == sha256


def trust_model(sha256: str, file: str, source: str) -> None:
    """Remember that files with this content may be loaded.

    Parameters
    ----------
    sha256 : str
        64 hexadecimal digits.
    file, source : str
        Its name, and where it is from: for the user who reads the record.

    Raises
    ------
    UsageError
        If the folder cannot be written.
    """
    if not is_trusted(sha256):
        _write(_model(sha256), {"sha256": sha256, "file": file, "source": source, "date": _now()})


def require_writable() -> None:
    """Find out before something long that it can be remembered.

    Raises
    ------
    UsageError
        If the folder cannot be written.
    """
    folder = trust_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise _cannot_write(folder, error) from error


def accepted_on(licence: str) -> str:
    """Return when a licence was accepted (ISO 8601, UTC); "" if it was not."""
    return _read(_licence(licence)).get("accepted", "")


def accept_licence(licence: str, url: str) -> None:
    """Remember that a licence has been accepted.

    Raises
    ------
    UsageError
        If the folder cannot be written.
    """
    _write(_licence(licence), {"licence": licence, "url": url, "accepted": _now()})


def _model(sha256: str) -> Path:
    return trust_folder() / "models" / f"{re.sub('[^0-9a-f]', '', sha256)}.json"


def _licence(licence: str) -> Path:
    return trust_folder() / "licences" / f"{re.sub('[^A-Za-z0-9.-]', '_', licence)}.json"


def _read(path: Path) -> dict[str, str]:
    """Return a record; empty if there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: str(value) for name, value in content.items()} if isinstance(content, dict) else {}


def _write(path: Path, content: Mapping[str, str]) -> None:
    try:
        write_atomically(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write {path} ({error.strerror}); set {TRUST_VARIABLE} to a folder that you may write")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
