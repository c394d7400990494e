"""Randomly initialised MACE models with the architectures of the foundation models, for tests and benchmarks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mace import modules
from mace.tools.torch_tools import default_dtype

from driver.models import ModelFile

ALL_ELEMENTS = tuple(z for z in range(1, 95) if z not in (84, 85, 86, 87, 88))
"""The 89 elements of the models trained on Materials Project data."""

FEW_ELEMENTS = (9, 11, 13, 17, 35, 47, 49, 55, 83)

_AGNOSTIC = {
    "interaction_cls_first": modules.blocks.RealAgnosticInteractionBlock,
    "interaction_cls": modules.blocks.RealAgnosticResidualInteractionBlock,
    "avg_num_neighbors": 1.0,  # messages large enough for the higher correlations to matter
}
_DENSITY = {
    "avg_num_neighbors": 1.0,
    "interaction_cls_first": modules.blocks.RealAgnosticDensityInteractionBlock,
    "interaction_cls": modules.blocks.RealAgnosticDensityResidualInteractionBlock,
}
_NONLINEAR = {
    "avg_num_neighbors": 1.0,
    "interaction_cls_first": modules.blocks.RealAgnosticResidualNonLinearInteractionBlock,
    "interaction_cls": modules.blocks.RealAgnosticResidualNonLinearInteractionBlock,
}

ARCHITECTURES: Mapping[str, Mapping[str, Any]] = {
    "mp-0": _AGNOSTIC,
    "mp-0-residual-first": {
        **_AGNOSTIC,
        "interaction_cls_first": modules.blocks.RealAgnosticResidualInteractionBlock,
    },
    "mp-0b": {**_AGNOSTIC, "avg_num_neighbors": 4.0, "distance_transform": "Agnesi", "pair_repulsion": True},
    "density": _DENSITY,
    "mpa-0": {**_DENSITY, "distance_transform": "Agnesi", "pair_repulsion": True},
    "multi-head": {
        **_DENSITY,
        "distance_transform": "Agnesi",
        "pair_repulsion": True,
        "heads": ["pbe", "default"],
    },
    "mh-1": {
        **_NONLINEAR,
        "heads": ["omat", "default"],
        "pair_repulsion": True,
        "apply_cutoff": False,
        "use_agnostic_product": True,
        "use_last_readout_only": True,
        "readout_cls": modules.blocks.NonLinearBiasReadoutBlock,
    },
}
"""Architecture name -> what sets it apart among MACE's arguments. Named after the first model that has it."""


def build_model(
    architecture: str,
    *,
    elements: Sequence[int] = FEW_ELEMENTS,
    hidden_irreps: str = "8x0e",
    r_max_A: float = 4.5,
    max_ell: int = 3,
    seed: int = 1,
    dtype: torch.dtype = torch.float64,
    **extra: Any,
) -> modules.MACE:
    """Return a two-layer ScaleShiftMACE of correlation 3 with random weights.

    Parameters
    ----------
    architecture : str
        A key of `ARCHITECTURES`.
    elements : sequence of int
        Atomic numbers, ascending.
    hidden_irreps : str
        "128x0e" is the size of MACE-MP-0 small, "128x0e+128x1o" that of medium and of MACE-MPA-0.
    **extra
        Further arguments of MACE.
    """
    from e3nn import o3  # only after mace

    settings = dict(ARCHITECTURES[architecture])
    heads = settings.pop("heads", ["Default"])
    readout = settings.pop("readout_cls", modules.blocks.NonLinearReadoutBlock)
    random = np.random.default_rng(seed)
    energies = random.normal(-3.0, 2.0, (len(heads), len(elements)))
    per_head = (lambda values: values[0]) if len(heads) == 1 else np.asarray
    with torch.random.fork_rng(devices=[]), default_dtype(dtype):
        torch.manual_seed(seed)
        model = modules.ScaleShiftMACE(
            **settings,
            **extra,
            r_max=r_max_A,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=max_ell,
            num_interactions=2,
            num_elements=len(elements),
            hidden_irreps=o3.Irreps(hidden_irreps),
            MLP_irreps=o3.Irreps("16x0e"),
            gate=torch.nn.functional.silu,
            atomic_energies=energies if len(heads) > 1 else energies[0],
            atomic_numbers=list(elements),
            correlation=3,
            use_reduced_cg=False,  # as without cuequivariance, so that its presence changes nothing
            radial_type="bessel",
            heads=heads,
            readout_cls=readout,
            atomic_inter_scale=per_head([4.0, 1.0]),
            atomic_inter_shift=per_head([0.16, -0.2]),
        )
        _randomise_small(model)
    return model


def save_model(model: modules.MACE, path: Path, *, key: str = "zoo", head: str = "") -> ModelFile:
    """Save a model as `torch.save(model)` does and return its `ModelFile`."""
    torch.save(model, path)
    return ModelFile(key=key, path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), head=head)


def _randomise_small(model: modules.MACE) -> None:
    """Give sizeable random values to what starts next to nothing, so that a test sees it being lost."""
    for name, parameter in model.named_parameters():
        if "symmetric_contractions" in name:
            torch.nn.init.normal_(parameter, std=0.5)
        if name.endswith(("bias", "beta")) or "_embedding.weight" in name:
            torch.nn.init.normal_(parameter, std=0.3)
