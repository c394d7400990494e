"""Which potentials a campaign uses. Importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelFile:
    """A model as a file on this machine.

    Attributes
    ----------
    key : str
        The campaign's name for the model, as `mace-mpa-0`.
    path : Path
        The .model file.
    sha256 : str
        Of the file, hexadecimal.
    head : str
        Head of a multi-head model; "" for the default one.
    """

    key: str
    path: Path
    sha256: str
    head: str = ""
