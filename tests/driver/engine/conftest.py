"""Models and structures for the tests of the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model_zoo import FEW_ELEMENTS, build_model, save_model
from random_structures import random_structure

from driver.archive.records import Structure
from driver.models import ModelFile


@pytest.fixture(scope="session")
def structures() -> list[Structure]:
    """Structures of different sizes and elements, among them a small cell of one atom."""
    return [
        random_structure(FEW_ELEMENTS, 12, seed=1),
        random_structure((17, 47, 55), 5, seed=2),
        random_structure((9,), 1, seed=3, volume_per_atom_A3=14.0),
        random_structure((11, 35, 83), 9, seed=4),
    ]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ModelFile]:
    """Return `zoo(architecture, hidden_irreps="8x0e", head="", dtype=float64)`: a model file, made once per session."""
    folder = tmp_path_factory.mktemp("zoo")
    made: dict[tuple[str, str, torch.dtype], ModelFile] = {}

    def file(
        architecture: str, hidden_irreps: str = "8x0e", head: str = "", dtype: torch.dtype = torch.float64
    ) -> ModelFile:
        key = (architecture, hidden_irreps, dtype)
        if key not in made:
            built = build_model(architecture, hidden_irreps=hidden_irreps, dtype=dtype)
            made[key] = save_model(built, folder / f"{len(made)}.model")
        model = made[key]
        return ModelFile(key=architecture, path=model.path, sha256=model.sha256, head=head)

    return file


@pytest.fixture(scope="session")
def prepared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for prepared models that lasts for the session."""
    return tmp_path_factory.mktemp("prepared")
