"""One engine per rank: models loaded once, evaluators made once per set of elements and precision."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from ase.data import chemical_symbols
from mace.modules.models import MACE

from driver.engine.evaluator import TorchEvaluator
from driver.engine.interface import Evaluator
from driver.engine.load import choose_head, load_model, parse_dtype
from driver.engine.select import select_elements
from driver.errors import TaskError
from driver.models import ModelFile

MAX_EVALUATORS = 16
"""Evaluators kept; the least recently used goes first."""


class Engine:
    """Makes evaluators on one device.

    Parameters
    ----------
    device : str
        "cpu", "cuda", "cuda:0", ...
    threads : int or None
        Of torch's operations on the CPU, for the whole process; None leaves them as they are.
    """

    def __init__(self, device: str = "cpu", threads: int | None = None) -> None:
        self.device = torch.empty(0, device=device).device  # "cuda" -> "cuda:0", as tensors report it
        if threads is not None:
            torch.set_num_threads(threads)
        self._models: dict[str, MACE] = {}
        self._evaluators: OrderedDict[tuple[str, int, torch.dtype, frozenset[int]], Evaluator] = OrderedDict()

    def evaluator(self, model: ModelFile, numbers: Iterable[int], dtype: str) -> Evaluator:
        """Return an evaluator of a model for some elements.

        Parameters
        ----------
        model : ModelFile
            From a trusted source: a model file can run code.
        numbers : iterable of int
            Atomic numbers, in any order, repeated or not.
        dtype : str
            "float32" or "float64".

        Raises
        ------
        UsageError
            The file cannot be used, or has no such head.
        TaskError
            The model lacks an element.
        """
        whole = self._model(model)
        elements = frozenset(int(z) for z in numbers)
        lacking = sorted(elements - {int(z) for z in whole.atomic_numbers})
        if lacking:
            names = ", ".join(chemical_symbols[z] for z in lacking)
            raise TaskError(f"model {model.key} does not know {names}; leave such materials out or use another model")
        key = (model.sha256, choose_head(whole, model), parse_dtype(dtype), elements)
        if key not in self._evaluators:
            reduced = select_elements(whole, sorted(elements))
            self._evaluators[key] = TorchEvaluator(reduced, head=key[1], dtype=key[2], device=self.device)
            if len(self._evaluators) > MAX_EVALUATORS:
                self._evaluators.popitem(last=False)
        self._evaluators.move_to_end(key)
        return self._evaluators[key]

    def check(self, model: ModelFile) -> None:
        """Load a model if it is not loaded yet, so that an unusable file is found before any task needs it.

        Raises
        ------
        UsageError
            The file cannot be used, or has no such head.
        """
        choose_head(self._model(model), model)

    def _model(self, file: ModelFile) -> MACE:
        """Return the whole model of a file, loaded at most once."""
        if file.sha256 not in self._models:
            self._models[file.sha256] = load_model(file)
        return self._models[file.sha256]
