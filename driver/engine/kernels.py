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


def missing_packages(device: torch.device) -> list[str]:
    """Return what is not installed of the packages that `with_cuequivariance` needs on a device."""
    wanted = (*PACKAGES, KERNELS) if device.type == "cuda" else PACKAGES
    return [name for name in wanted if importlib.util.find_spec(name) is None]


def with_cuequivariance(model: MACE, device: torch.device, dtype: torch.dtype) -> MACE:
    """Return a copy of a model in a precision whose tensor products are cuEquivariance's.

    The copy keeps all elements: their number costs these kernels little, and the conversion takes seconds. The
    precision is settled here, because the kernels compute in the one that they were made for, whatever the weights
    are converted to later.

    Parameters
    ----------
    model : MACE
    device : torch.device
        On a CPU cuEquivariance has no kernels and is slow; that is for comparing numbers.
    dtype : torch.dtype

    Raises
    ------
    UsageError
        The packages are not installed.
    """
    if missing := missing_packages(device):
        raise UsageError(
            f"engine.cuequivariance=true needs {', '.join(missing)}: pip install cuequivariance-torch "
            "cuequivariance-ops-torch-cu12 (or -cu13), or set it to false"
        )
    exact = _converted(model, device, torch.float64)
    if dtype == torch.float64:
        return exact
    converted = _converted(model, device, dtype)
    converted.load_state_dict(exact.state_dict())  # rounded once, not at every step of the conversion
    return converted


def _converted(model: MACE, device: torch.device, dtype: torch.dtype) -> MACE:
    source = copy.deepcopy(model).to(device=device, dtype=dtype)
    with default_dtype(dtype):  # the conversion changes the default
        return convert(source, device=device.type, return_model=True)
