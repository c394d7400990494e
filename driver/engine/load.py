"""Loading MACE model files.

A .model file is a Python pickle: loading one runs whatever code it contains. Load only files from a source you trust;
the sha256 that a campaign records says which file it was.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from mace.modules.models import MACE, ScaleShiftMACE

from driver.errors import UsageError
from driver.models import ModelFile

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def load_model(file: ModelFile) -> MACE:
    """Load a MACE model onto the CPU, as it is in its file (all elements, all heads, its own dtype).

    Parameters
    ----------
    file : ModelFile
        From a trusted source: see the module's docstring.

    Returns
    -------
    MACE
        In evaluation mode; no parameter requires a gradient.

    Raises
    ------
    UsageError
        The file is missing, damaged, or not a MACE energy model that this program can evaluate.
    """
    where = f"model {file.key} ({file.path})"
    _check_container(file.path, where)
    try:
        model = torch.load(file.path, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{where} needs the Python package {error.name!r}, which is not installed; "
            "install it, or use the model as plain MACE (e3nn) saved by mace-torch"
        ) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{where} cannot be loaded: {reason}; fetch the file again or check its source") from error
    _check_architecture(model, where)
    model.eval()
    model.requires_grad_(False)
    return model


def choose_head(model: MACE, file: ModelFile) -> int:
    """Return the index of the head that `file.head` names.

    "" means the only head of a single-head model, else the one called "default" in any case of letters.

    Raises
    ------
    UsageError
        There is no such head; the message names those that there are.
    """
    heads = list(getattr(model, "heads", None) or ["Default"])
    if file.head in heads:
        return heads.index(file.head)
    if not file.head:
        if len(heads) == 1:
            return 0
        defaults = [index for index, head in enumerate(heads) if head.lower() == "default"]
        if defaults:
            return defaults[0]
        raise UsageError(f"model {file.key} has several heads and no default: set head to one of {', '.join(heads)}")
    raise UsageError(f"model {file.key} has no head {file.head!r}: set head to one of {', '.join(heads)}")


def parse_dtype(name: str) -> torch.dtype:
    """Return the torch dtype called "float32" or "float64"."""
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _check_container(path: Path, where: str) -> None:
    """Refuse what cannot be a saved model before it is unpickled, with the likely reason."""
    if not path.is_file():
        raise UsageError(f"{where}: no such file; `python -m driver models fetch` downloads the foundation models")
    with path.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise UsageError(f"{where} is a Git LFS pointer, not the model; run `git lfs pull` or download the file itself")
    if head.lstrip()[:1] == b"<":
        raise UsageError(f"{where} is a web page, not a model; download the file itself")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise UsageError(f"{where} is truncated ({path.stat().st_size} bytes); fetch it again")


def _check_architecture(model: Any, where: str) -> None:
    """Refuse what loads but is not a MACE model that the torch evaluator can evaluate."""
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(f"{where} is a compiled (TorchScript) model; use the plain .model file it was made from")
    if type(model) not in (MACE, ScaleShiftMACE):
        raise UsageError(f"{where} holds a {type(model).__name__}, not a MACE energy model; use a MACE .model file")
    if hasattr(model, "joint_embedding"):
        wanted = ", ".join(model.embedding_specs)
        raise UsageError(f"{where} needs more than atoms and cell ({wanted}); use a model without such inputs")
