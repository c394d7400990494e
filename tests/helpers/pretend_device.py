"""A device that is not there: its tensors say they are on it, hold real values on the CPU, and refuse to be mixed.

For what a GPU would find and a CPU forgives: an operation on tensors of two devices, and waiting for the device (its
values asked for on the host, shapes that depend on values), which costs a GPU its lead over the host.

    with PretendDevice() as device:
        torch.zeros(3, device="meta") + torch.zeros(3)      # RuntimeError
        device.waits                                        # Counter: operation -> times the host waited
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")
"""Its name: of the devices that every build of torch knows, the only one whose gradients need no hardware."""

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero", "item")
"""Operations whose result the host needs."""


class PretendTensor(torch.Tensor):
    """Says it is on the device; `values` is what it holds."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> PretendTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
        )
        tensor.values = values
        return tensor

    def tolist(self) -> Any:
        """As others do it, which torch refuses for tensors of other classes."""
        return self.cpu().tolist()

    def __getitem__(self, index: Any) -> torch.Tensor:
        return super().__getitem__(_as_tensor(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_as_tensor(index), value)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PretendTensor({self.values})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("a tensor of the device is used outside of it")


def _values(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, PretendTensor) else leaf


def _as_tensor(index: Any) -> Any:
    """Return an index that is a list as a tensor of the CPU: torch would make it on "meta", where it has no values."""
    return torch.tensor(index) if isinstance(index, list) else index


class _FromHost(TorchFunctionMode):
    """Makes tensors of Python's numbers on the CPU first, where they have values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


class PretendDevice(TorchDispatchMode):
    """While it is active, tensors on "meta" compute, and whatever mixes them with the CPU's raises.

    Attributes
    ----------
    waits : Counter
        How often the host had to wait for the device, by operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self._from_host = _FromHost()

    def __enter__(self) -> PretendDevice:
        self._from_host.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._from_host.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.removeprefix("aten::")
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.Tensor)]
        here = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
        target = kwargs.get("device")
        moves = name in ("_to_copy", "copy_")
        if here and not moves:
            # Where a tensor is indexed, the indices may come from the CPU.
            bound = [args[0], *args[2:3]] if name in ("index", "index_put", "index_put_") else tensors
            self._refuse_mixture(name, bound)
        on_device = torch.device(target) == DEVICE if target is not None else bool(here)
        if name == "copy_":
            on_device = isinstance(args[0], PretendTensor)
        if here and (name in WAITS or (moves and not on_device) or self._by_mask(name, tensors)):
            self.waits[name] += 1
        if target is not None and torch.device(target) == DEVICE:
            kwargs["device"] = torch.device("cpu")
        result = func(*tree_map(_values, args), **tree_map(_values, kwargs))
        if not on_device:
            return result
        return self._returned(func, args, result)

    @staticmethod
    def _by_mask(name: str, tensors: Iterable[torch.Tensor]) -> bool:
        """Indexing by a mask: the size of the result depends on its values."""
        return name == "index" and any(tensor.dtype == torch.bool for tensor in list(tensors)[1:])

    @staticmethod
    def _refuse_mixture(name: str, tensors: Iterable[torch.Tensor]) -> None:
        for tensor in tensors:
            if isinstance(tensor, torch.Tensor) and not isinstance(tensor, PretendTensor) and tensor.dim() > 0:
                raise RuntimeError(f"{name} of tensors on two devices")

    @staticmethod
    def _returned(func: Any, args: Any, result: Any) -> Any:
        """Wrap results; what was changed in place is returned as it was given."""
        if func._schema.is_mutable and func._schema.name.endswith("_"):
            return args[0]
        return tree_map(lambda leaf: PretendTensor(leaf) if isinstance(leaf, torch.Tensor) else leaf, result)
