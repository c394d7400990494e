"""Cutting a model to some elements, on mace-torch's own terms: plain forward passes of both models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from model_zoo import ARCHITECTURES, FEW_ELEMENTS
from random_structures import random_structure

from driver.archive.records import Structure
from driver.engine.batch import StructureBatch
from driver.engine.load import load_model
from driver.engine.neighbors import NeighborList
from driver.engine.select import select_elements
from driver.models import ModelFile

PRESENT = (17, 47, 55)


def forward(model: torch.nn.Module, structures: Sequence[Structure]) -> dict[str, torch.Tensor]:
    batch = StructureBatch.from_structures(structures, dtype=torch.float64)
    edges = NeighborList(float(model.r_max)).update(batch)
    known = model.atomic_numbers.tolist()
    element = torch.tensor([known.index(z) for z in batch.numbers.tolist()])
    heads = len(model.heads)
    inputs = {
        "positions": batch.positions,
        "cell": batch.cells,
        "node_attrs": torch.nn.functional.one_hot(element, len(known)).double(),
        "edge_index": torch.stack((edges.senders, edges.receivers)),
        "shifts": edges.shifts_A,
        "batch": batch.system,
        "ptr": torch.zeros(batch.size + 1, dtype=torch.int64),
        "head": torch.arange(batch.size) % heads,  # all heads at once
    }
    return model(inputs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_keeps_energies_and_forces(zoo: Callable[..., ModelFile], architecture: str) -> None:
    model = load_model(zoo(architecture))
    structures = [random_structure(PRESENT, 8, seed=1), random_structure(PRESENT, 3, seed=2)]
    before = forward(model, structures)
    reduced = select_elements(model, PRESENT)
    assert reduced.atomic_numbers.tolist() == list(PRESENT)
    for results in (forward(reduced, structures), forward(model, structures)):  # and the original is untouched
        for name in ("energy", "forces"):
            torch.testing.assert_close(results[name], before[name], rtol=0, atol=1e-10)
    assert sum(p.numel() for p in reduced.parameters()) < sum(p.numel() for p in model.parameters())


def test_keeps_the_models_order(zoo: Callable[..., ModelFile]) -> None:
    reduced = select_elements(load_model(zoo("mp-0")), (83, 9, 35))
    assert reduced.atomic_numbers.tolist() == [9, 35, 83]


def test_can_keep_all(zoo: Callable[..., ModelFile]) -> None:
    model = load_model(zoo("mp-0"))
    reduced = select_elements(model, FEW_ELEMENTS)
    assert reduced is not model
    assert reduced.atomic_numbers.tolist() == list(FEW_ELEMENTS)


@pytest.mark.parametrize("numbers", [(9, 26), ()])
def test_refuses_elements_that_the_model_lacks(zoo: Callable[..., ModelFile], numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot select elements"):
        select_elements(load_model(zoo("mp-0")), numbers)
