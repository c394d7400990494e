"""Loading MACE model files.

A .model file is a Python pickle: loading one runs whatever code it contains. So what is loaded are the very bytes whose
sha256 was found to be trusted (`driver.models.resolve`), not whatever the path holds by now.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any

import torch
from mace.modules.models import MACE, ScaleShiftMACE

from driver.errors import UsageError
from driver.model_container import refuse_other_files
from driver.models import ModelFile, head_index

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def load_model(file: ModelFile) -> MACE:
    """Load a MACE model onto the CPU, as it is in its file (all elements, all heads, its own dtype).

    Parameters
    ----------
    file : ModelFile
        What is loaded has its sha256; that it may be loaded has been found out before.

    Returns
    -------
    MACE
        In evaluation mode; no parameter requires a gradient.

    Raises
    ------
    UsageError
        The file is missing, damaged, another one than was checked, or not a MACE energy model that this program can
        evaluate.
    """
    where = f"model {file.key} ({file.path})"
    content = open_model(file)
    try:
        model = torch.load(content, map_location="cpu", weights_only=False)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{where} needs the Python package {error.name!r}, which is not installed; "
            "install it, or use the model as plain MACE (e3nn) saved by mace-torch"
        ) from error
    except Exception as error:  # unpickling may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{where} cannot be loaded: {reason}; fetch the file again or check its source") from error
    _check_architecture(model, where)
    model.eval()
    model.requires_grad_(False)
    return model


def open_model(file: ModelFile) -> io.BytesIO:
    """Return the content of a model file, which has the sha256 of `file`.

    Raises
    ------
    UsageError
        It has another one by now, or is no model.
    """
    where = f"model {file.key} ({file.path})"
    refuse_other_files(file.path, where)
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise UsageError(f"{where} cannot be read ({error.strerror}); check its permissions") from error
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise UsageError(
            f"{where} has sha256 {found}, not {file.sha256}: it was changed meanwhile; run the command again"
        )
    return io.BytesIO(content)


def choose_head(model: MACE, file: ModelFile) -> int:
    """Return the index of the head that `file.head` names.

    "" means the only head of a single-head model, else the one called "default" in any case of letters.

    Raises
    ------
    UsageError
        There is no such head; the message names those that there are.
    """
    return head_index(heads_of(model), file)


def heads_of(model: MACE) -> tuple[str, ...]:
    """Return the names of a model's heads."""
    return tuple(map(str, getattr(model, "heads", None) or ["Default"]))


def parse_dtype(name: str) -> torch.dtype:
    """Return the torch dtype called "float32" or "float64"."""
    if name not in DTYPES:
        raise UsageError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _check_architecture(model: Any, where: str) -> None:
    """Refuse what loads but is not a MACE model that the torch evaluator can evaluate."""
    if isinstance(model, torch.jit.ScriptModule):
        raise UsageError(f"{where} is a compiled (TorchScript) model; use the plain .model file it was made from")
    if type(model) not in (MACE, ScaleShiftMACE):
        raise UsageError(f"{where} holds a {type(model).__name__}, not a MACE energy model; use a MACE .model file")
    if hasattr(model, "joint_embedding"):
        wanted = ", ".join(model.embedding_specs)
        raise UsageError(f"{where} needs more than atoms and cell ({wanted}); use a model without such inputs")
