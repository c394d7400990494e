"""NVIDIA's cuEquivariance kernels for the reference evaluator, where they are installed and asked for."""

from __future__ import annotations

import copy
import importlib.util

import torch
from mace.cli.convert_e3nn_cueq import run as convert
from mace.modules.models import MACE
from mace.tools.torch_tools import default_dtype

from driver.errors import UsageError

PACKAGES = ("cuequivariance", "cuequivariance_torch")
KERNELS = "cuequivariance_ops_torch"


def with_cuequivariance(model: MACE, device: torch.device) -> MACE:
    """Return a copy of a model, in double precision, whose tensor products are cuEquivariance's.

    The copy keeps all elements: their number costs these kernels little, and the conversion takes seconds.

    Parameters
    ----------
    model : MACE
    device : torch.device
        On a CPU cuEquivariance has no kernels and is slow; that is for comparing numbers.

    Raises
    ------
    UsageError
        The packages are not installed.
    """
    wanted = (*PACKAGES, KERNELS) if device.type == "cuda" else PACKAGES
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"engine.cuequivariance=true needs {', '.join(missing)}: pip install cuequivariance-torch "
            "cuequivariance-ops-torch-cu12 (or -cu13), or set it to false"
        )
    source = copy.deepcopy(model).double().to(device)
    with default_dtype(torch.float64):  # the conversion changes the default
        return convert(source, device=device.type, return_model=True)
