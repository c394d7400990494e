"""Exact reduction of a MACE model to the elements at hand.

Foundation models carry a one-hot axis over all their elements through the node embedding, the skip connections and the
symmetric contractions. Weights of absent elements are only ever multiplied by zero, so they can be cut off; e3nn
normalises a sum over n one-hot entries by 1/sqrt(n), so the weights that stay are rescaled.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mace.modules.blocks import InteractionBlock
from mace.modules.models import MACE
from mace.modules.symmetric_contraction import Contraction
from mace.modules.wrapper_ops import FullyConnectedTensorProduct, Linear
from mace.tools.torch_tools import default_dtype


def select_elements(model: MACE, numbers: Sequence[int]) -> MACE:
    """Return a copy of a model, in double precision, that knows only the elements `numbers`.

    Energies, forces and stress of structures of these elements are those of the whole model up to rounding.

    Parameters
    ----------
    model : MACE
        Left as it is.
    numbers : sequence of int
        Distinct atomic numbers that the model knows; kept in the model's own order.

    Raises
    ------
    ValueError
        `numbers` is empty or holds an element that the model lacks.
    """
    known = [int(z) for z in model.atomic_numbers]
    missing = sorted(set(numbers) - set(known))
    if missing or not numbers:
        raise ValueError(f"cannot select elements {sorted(numbers)}: the model lacks {missing}")
    kept = torch.tensor([index for index, z in enumerate(known) if z in set(numbers)])
    reduced = copy.deepcopy(model).double()  # a weight rescaled in float32 would no longer be the file's
    if len(kept) == len(known):
        return reduced
    reduced.atomic_numbers = reduced.atomic_numbers[kept]
    energies = reduced.atomic_energies_fn
    energies.atomic_energies = energies.atomic_energies[..., kept]
    _select_linear_input(reduced.node_embedding, "linear", kept)
    for interaction, product in zip(reduced.interactions, reduced.products, strict=True):
        _select_interaction(interaction, kept, len(known))
        if not getattr(product, "use_agnostic_product", False):
            for contraction in product.symmetric_contractions.contractions:
                _select_contraction(contraction, kept)
    return reduced


def _select_interaction(interaction: InteractionBlock, kept: torch.Tensor, elements: int) -> None:
    """Cut every layer of an interaction that takes the one-hot elements as an input."""
    if hasattr(interaction.skip_tp, "irreps_in2"):
        interaction.skip_tp = _reduced_skip(interaction.skip_tp, kept, elements)
    for name in ("source_embedding", "target_embedding"):
        if hasattr(interaction, name):
            _select_linear_input(interaction, name, kept)
    interaction.node_attrs_irreps = type(interaction.node_attrs_irreps)(f"{len(kept)}x0e")


def _select_linear_input(parent: torch.nn.Module, name: str, kept: torch.Tensor) -> None:
    """Cut the input of the linear layer `parent.name`, whose input is the one-hot elements, to those `kept`."""
    old = getattr(parent, name)
    elements = old.irreps_in.dim
    with default_dtype(torch.float64):  # so that constants are rounded only once, to the model's dtype
        new = Linear(type(old.irreps_in)(f"{len(kept)}x0e"), old.irreps_out).to(old.weight)
    weight = old.weight.detach().view(elements, -1)[kept] * (len(kept) / elements) ** 0.5
    new.weight = torch.nn.Parameter(weight.flatten(), requires_grad=False)
    setattr(parent, name, new)


def _reduced_skip(old: Any, kept: torch.Tensor, elements: int) -> torch.nn.Module:
    """Return a skip connection (features x one-hot elements -> features) for the elements `kept`."""
    with default_dtype(torch.float64):
        new = FullyConnectedTensorProduct(old.irreps_in1, type(old.irreps_in2)(f"{len(kept)}x0e"), old.irreps_out).to(
            old.weight
        )
    parts, begin = [], 0
    for instruction in old.instructions:  # one per irrep: weight (features in, elements, features out)
        size = torch.Size(instruction.path_shape).numel()
        weight = old.weight.detach()[begin : begin + size].view(instruction.path_shape)
        parts.append(weight[:, kept].flatten() * (len(kept) / elements) ** 0.5)
        begin += size
    new.weight = torch.nn.Parameter(torch.cat(parts), requires_grad=False)
    return new


def _select_contraction(contraction: Contraction, kept: torch.Tensor) -> None:
    """Cut the weights (elements, paths, features) of a symmetric contraction; it applies no normalisation."""
    contraction.weights_max = torch.nn.Parameter(contraction.weights_max.detach()[kept], requires_grad=False)
    contraction.weights = torch.nn.ParameterList(
        [torch.nn.Parameter(weight.detach()[kept], requires_grad=False) for weight in contraction.weights]
    )
