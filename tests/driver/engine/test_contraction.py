"""The tabulated symmetric contraction against mace-torch's."""

from __future__ import annotations

import pytest
import torch
from mace.modules.symmetric_contraction import SymmetricContraction

from driver.engine.contraction import ElementContraction, ElementGroups


@pytest.mark.parametrize("irreps_out", ["3x0e", "3x0e+3x1o", "3x0e+3x1o+3x2e"])
@pytest.mark.parametrize("elements", [1, 3])
def test_values_and_gradients_agree(irreps_out: str, elements: int) -> None:
    from e3nn import o3  # only after mace

    torch.manual_seed(0)
    irreps_in = o3.Irreps("3x0e+3x1o+3x2e+3x3o")
    reference = SymmetricContraction(irreps_in, o3.Irreps(irreps_out), correlation=3, num_elements=elements).double()
    element = torch.randint(elements, (7,))
    groups = ElementGroups()
    groups.assign(element, elements)
    tabulated = ElementContraction(reference, groups, agnostic=elements == 1)
    attributes = torch.nn.functional.one_hot(element, elements).double()
    weights = torch.randn(7, o3.Irreps(irreps_out).dim, dtype=torch.float64)
    results = []
    for contraction in (reference, tabulated):
        features = torch.randn(7, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        features.requires_grad_(True)
        values = contraction(features, attributes)
        (gradient,) = torch.autograd.grad((values * weights).sum(), features)
        results.append((values.detach(), gradient))
    for ours, theirs in zip(results[1], results[0], strict=True):
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_groups_cover_every_atom_once() -> None:
    groups = ElementGroups()
    groups.assign(torch.tensor([2, 0, 2, 2]), 3)
    assert [atoms.tolist() for atoms in groups.atoms] == [[1], [], [0, 2, 3]]
