"""What a model file turns out to be once it is loaded; meant to be called in a process of its own."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def inspect_models(files: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Load models, one after the other.

    Parameters
    ----------
    files : sequence of mappings
        `key`, `path`, `sha256` of each.

    Returns
    -------
    list of dict
        `atomic_numbers` and `heads` of each.

    Raises
    ------
    UsageError
        A file cannot be used.
    """
    warnings.simplefilter("ignore")  # of torch, e3nn and mace: for their developers
    from driver.engine.load import heads_of, load_model
    from driver.models import ModelFile

    found = []
    for file in files:
        model = load_model(ModelFile(file["key"], Path(file["path"]), file["sha256"]))
        found.append({"atomic_numbers": [int(z) for z in model.atomic_numbers], "heads": list(heads_of(model))})
    return found
