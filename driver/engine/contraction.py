"""MACE's symmetric contraction as what it is: a cubic polynomial per element and channel.

A contraction maps the features x (of dimension L = (l_max + 1)^2) of an atom of element e in channel c to

    f_m(x) = sum_ijk T3_mijk x_i x_j x_k + sum_ij T2_mij x_i x_j + sum_i T1_mi x_i,

where T_nu = sum_paths U_nu W_nu[e, path, c] couples fixed coefficients U with weights W (Batatia et al., NeurIPS 2022,
eq. 10). In inference the weights are constants, so the T are computed once and made symmetric. With the products
x_j x_k, j <= k, one matrix product per element and channel gives

    G_mi = sum_jk T3_mijk x_j x_k + sum_j T2_mij x_j + T1_mi,      f_m = sum_i G_mi x_i,

and as T is symmetric the derivative df_m/dx_i = 3 G_mi - sum_j T2_mij x_j - 2 T1_mi comes with it almost for free.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mace.modules.models import MACE
from mace.modules.symmetric_contraction import Contraction, SymmetricContraction

CORRELATION = 3


@dataclass
class ElementGroups:
    """Which atoms of the present batch are of which of the model's elements; shared by all contractions of a model."""

    atoms: tuple[torch.Tensor, ...] = field(default=())
    """Per element, the indices of its atoms."""

    def assign(self, element: torch.Tensor, elements: int) -> None:
        """Group the atoms of a batch by their element index (N,)."""
        self.atoms = tuple((element == e).nonzero().flatten() for e in range(elements))


class ElementContraction(torch.nn.Module):
    """Stands in for a `SymmetricContraction` of correlation 3; first derivatives only.

    Parameters
    ----------
    contraction : SymmetricContraction
    groups : ElementGroups
        Kept up to date by the evaluator.
    agnostic : bool
        All elements share one set of weights.
    """

    constant: torch.Tensor
    linear: torch.Tensor
    gradient: torch.Tensor

    def __init__(self, contraction: SymmetricContraction, groups: ElementGroups, *, agnostic: bool) -> None:
        super().__init__()
        self.groups = groups
        self.agnostic = agnostic
        self.components = [2 * irrep.ir.l + 1 for irrep in contraction.irreps_out]
        parts = [_coefficients(part) for part in contraction.contractions]
        # (elements, channels, monomials that multiply it, components m times features i)
        constant, linear, quadratic = (torch.cat(terms, dim=-2).flatten(-2) for terms in zip(*parts, strict=True))
        self.register_buffer("constant", constant)
        self.register_buffer("linear", linear)
        self.register_buffer("gradient", torch.cat((linear, quadratic), dim=2))

    def forward(self, features: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
        """Return (N, sum of channels x (2 l + 1)) from features (N, channels, L); `attributes` are not looked at."""
        del attributes
        if self.agnostic:
            values = _Polynomial.apply(features, self.constant[0], self.linear[0], self.gradient[0])
        else:
            values = self._by_element(features)
        return torch.cat([part.flatten(1) for part in values.split(self.components, dim=2)], dim=1)

    def _by_element(self, features: torch.Tensor) -> torch.Tensor:
        """Return the polynomials' values (N, channels, components)."""
        results, order = [], []
        for e, atoms in enumerate(self.groups.atoms):
            if len(atoms):
                own = features.index_select(0, atoms)
                results.append(_Polynomial.apply(own, self.constant[e], self.linear[e], self.gradient[e]))
                order.append(atoms)
        values = torch.cat(results)
        return torch.zeros_like(values).index_copy(0, torch.cat(order), values)


class _Polynomial(torch.autograd.Function):
    """f (B, C, M) of features x (B, C, L) and coefficients (C, 1 or L or L + pairs, M L)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, constant: torch.Tensor, linear: torch.Tensor, gradient: torch.Tensor
    ) -> torch.Tensor:
        size = x.shape[2]
        by_channel = x.transpose(0, 1)
        monomials = x.new_empty(x.shape[1], x.shape[0], gradient.shape[1])
        monomials[..., :size] = by_channel
        begin = size
        for i in range(size):
            end = begin + size - i
            torch.mul(by_channel[..., i : i + 1], by_channel[..., i:], out=monomials[..., begin:end])
            begin = end
        shape = (x.shape[1], x.shape[0], -1, size)
        g = torch.baddbmm(constant, monomials, gradient)
        values = (g.view(shape) * by_channel.unsqueeze(2)).sum(-1)
        if ctx.needs_input_grad[0]:
            jacobian = g.mul_(3.0).baddbmm_(by_channel, linear, alpha=-1.0).sub_(constant, alpha=2.0)
            ctx.save_for_backward(jacobian.view(shape))
        return values.transpose(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (jacobian,) = ctx.saved_tensors
        by_channel = (grad.transpose(0, 1).unsqueeze(-1) * jacobian).sum(2)
        return by_channel.transpose(0, 1), None, None, None


def tabulate_contractions(model: MACE, groups: ElementGroups) -> MACE:
    """Replace the symmetric contractions of a model, in place, and return the model.

    Contractions of another correlation or implementation are left alone.
    """
    for product in model.products:
        contraction = product.symmetric_contractions
        if type(contraction) is SymmetricContraction and _is_cubic(contraction.contractions):
            agnostic = bool(getattr(product, "use_agnostic_product", False))
            product.symmetric_contractions = ElementContraction(contraction, groups, agnostic=agnostic)
    return model


def _is_cubic(contractions: Sequence[Contraction]) -> bool:
    return all(part.correlation == CORRELATION for part in contractions)


def _coefficients(part: Contraction) -> tuple[torch.Tensor, ...]:
    """Return T1, T2, T3 of one irrep, (elements, channels, 1 or L or pairs j <= k, M, L), in the weights' dtype."""
    coefficients = []
    for nu, weight in enumerate((*reversed(list(part.weights)), part.weights_max), start=1):
        coupling = part.U_tensors(nu).double()  # (M, L, ... L, paths); scalars lack the axis of their one component
        coupling = coupling.view(-1, *coupling.shape[-nu - 1 :])
        orders = [(0, *order, nu + 1) for order in itertools.permutations(range(1, nu + 1))]
        coupling = torch.stack([coupling.permute(order) for order in orders]).mean(0)
        if nu == 1:
            coupling = coupling.unsqueeze(2)
        elif nu == CORRELATION:
            j, k = torch.triu_indices(*coupling.shape[2:4], device=coupling.device)
            coupling = coupling[:, :, j, k] * torch.where(j == k, 1.0, 2.0).to(coupling).unsqueeze(-1)
        coefficients.append(torch.einsum("mijp,epc->ecjmi", coupling, weight.detach().double()).to(weight.dtype))
    return tuple(coefficients)
