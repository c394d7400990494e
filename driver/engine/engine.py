"""One engine per rank: models loaded once, evaluators made once per set of elements and precision."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import torch
from ase.data import chemical_symbols
from mace.modules.models import MACE

from driver.archive.records import Structure
from driver.batch_size import BatchSizer
from driver.engine.choice import COMPARISONS, Agreement, Choice, compare_forces, probe_crystal
from driver.engine.evaluator import TorchEvaluator
from driver.engine.interface import Evaluator
from driver.engine.kernels import with_cuequivariance
from driver.engine.load import choose_head, load_model, parse_dtype
from driver.engine.memory import default_capacity_atoms
from driver.engine.preparation import UnfitError, is_prepared, prepare
from driver.engine.select import select_elements
from driver.engine.symmetrix import SymmetrixEvaluator
from driver.errors import TaskError, UsageError
from driver.models import ModelFile, prepared_folder
from driver.settings import EngineSettings

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
    settings : EngineSettings
        Which evaluators the stages use; where the fast one is kept.
    capacity_atoms : int or None
        Atoms per batch, if that was asked for.
    """

    def __init__(
        self,
        device: str = "cpu",
        threads: int | None = None,
        settings: EngineSettings | None = None,
        capacity_atoms: int | None = None,
    ) -> None:
        self.device = torch.empty(0, device=device).device  # "cuda" -> "cuda:0", as tensors report it
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # libraries launch their kernels on the current device
        torch.set_float32_matmul_precision("highest")  # no TF32, whatever the environment says
        if threads is not None:
            torch.set_num_threads(threads)
        self._settings = settings or EngineSettings()
        self._capacity_atoms = capacity_atoms
        self._sizers: dict[tuple[str, str], BatchSizer] = {}
        self._models: dict[str, MACE] = {}
        self._fast: dict[tuple[str, int, torch.dtype], SymmetrixEvaluator | UnfitError] = {}
        self._compared: dict[tuple[object, ...], Agreement] = {}
        self._notices: list[str] = []
        self._evaluators: OrderedDict[tuple[str, int, torch.dtype, frozenset[int]], Evaluator] = OrderedDict()

    def evaluator(self, model: ModelFile, numbers: Iterable[int], dtype: str) -> Evaluator:
        """Return an evaluator of a model for some elements.

        Parameters
        ----------
        model : ModelFile
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
        self.check_elements(model, elements)
        key = (model.sha256, choose_head(whole, model), parse_dtype(dtype), elements)
        if self._settings.cuequivariance:
            key = (*key[:3], frozenset(int(z) for z in whole.atomic_numbers))
        if key not in self._evaluators:
            self._evaluators[key] = self._reference(model, elements, *key[1:3])
            if len(self._evaluators) > MAX_EVALUATORS:
                self._evaluators.popitem(last=False)
        self._evaluators.move_to_end(key)
        return self._evaluators[key]

    def _reference(self, file: ModelFile, elements: frozenset[int], head: int, dtype: torch.dtype) -> TorchEvaluator:
        """Return a new torch evaluator: of the elements, or with cuEquivariance, compared with one without, of all."""
        whole = self._model(file)

        def evaluator(model: MACE, dtype: torch.dtype, name: str) -> TorchEvaluator:
            return TorchEvaluator(model, head=head, dtype=dtype, device=self.device, name=name)

        if not self._settings.cuequivariance:
            return evaluator(select_elements(whole, sorted(elements)), dtype, "torch")
        converted = evaluator(with_cuequivariance(whole, self.device, dtype), dtype, "torch+cuequivariance")
        probe = sorted(elements)[:4]
        plain = evaluator(select_elements(whole, probe), torch.float64, "torch")
        agreement = compare_forces(converted, plain, probe_crystal(probe))
        if self._excess(agreement) > 1.0:
            raise UsageError(
                f"model {file.key}: with cuEquivariance it gives {agreement}; set engine.cuequivariance=false"
            )
        return converted

    def choose(
        self, model: ModelFile, structures: Sequence[Structure], dtype: str, stage: str = "dynamics"
    ) -> list[Choice]:
        """Return the evaluator that a stage uses for each structure: the fast one where it is as good as the reference.

        Parameters
        ----------
        model : ModelFile
        structures : sequence of Structure
            The first one of each set of elements that this process meets is compared.
        dtype : str
        stage : str
            dynamics, or displace: force constants are compared, too.

        Raises
        ------
        UsageError
            The setting is symmetrix, and it cannot be used; or as `evaluator` does.
        TaskError
            The model lacks an element.
        """
        self.check_elements(model, {int(z) for structure in structures for z in structure.numbers})
        chosen = [self._fast_for(model, structure, dtype, stage) for structure in structures]
        others = {
            int(z)
            for (fast, _), structure in zip(chosen, structures, strict=True)
            if not fast
            for z in structure.numbers
        }
        return [Choice(fast or self.evaluator(model, others, dtype), reason) for fast, reason in chosen]

    def _fast_for(
        self, model: ModelFile, structure: Structure, dtype: str, stage: str
    ) -> tuple[SymmetrixEvaluator | None, str]:
        """Return the fast evaluator if a structure is to use it, and why, or why not."""
        setting, wanted = self._settings.evaluator_of(stage)
        asked = f"asked for by {setting}"
        if wanted == "torch":
            return None, asked
        fast = self._prepared(model, dtype)
        if isinstance(fast, UnfitError):
            if wanted == "symmetrix":
                raise UsageError(f"{setting}=symmetrix with model {model.key}: {fast}; set it to auto or torch")
            return None, str(fast)
        if wanted == "symmetrix":
            return fast, asked
        worst = max(self._agreements(model, fast, structure, stage), key=self._excess)
        if self._excess(worst) > 1.0:
            return None, f"symmetrix differs too much: {worst}"
        return fast, str(worst)

    def batch_sizer(self, model: ModelFile, dtype: str) -> BatchSizer:
        """Return what decides how many structures are evaluated at once; it learns from those that are."""
        key = (model.sha256, dtype)
        if key not in self._sizers:
            atoms = self._capacity_atoms or default_capacity_atoms(self.device)
            self._sizers[key] = BatchSizer(atoms, fixed=self._capacity_atoms is not None)
        return self._sizers[key]

    def prepare(
        self, model: ModelFile, dtype: str, stage: str = "dynamics", stop: Callable[[], bool] | None = None
    ) -> str:
        """Extract and compile what the fast evaluator needs of a model, if a stage is to use it.

        Parameters
        ----------
        model : ModelFile
        dtype : str
        stage : str
        stop : callable, optional
            Asked several times a second while something is made; once it is true, that is given up.

        Returns
        -------
        str
            "" if it can be used, else why not.

        Raises
        ------
        InterruptedRunError
            `stop` has become true; the next call begins anew.
        """
        setting, wanted = self._settings.evaluator_of(stage)
        if wanted == "torch":
            return f"{setting} is torch"
        fast = self._prepared(model, dtype, stop)
        return str(fast) if isinstance(fast, UnfitError) else ""

    def must_compile(self, model: ModelFile, dtype: str, stage: str = "dynamics") -> bool:
        """Tell whether `prepare` would take minutes."""
        if self.device.type != "cpu" or self._settings.evaluator_of(stage)[1] == "torch":
            return False
        return not is_prepared(self._model(model), model, dtype, prepared_folder(self._settings.cache))

    def take_notices(self) -> list[str]:
        """Return, once, where the reference has had to take the place of the fast evaluator, and why."""
        taken, self._notices = self._notices, []
        return taken

    def _prepared(
        self, model: ModelFile, dtype: str, stop: Callable[[], bool] | None = None
    ) -> SymmetrixEvaluator | UnfitError:
        """Return the fast evaluator of all elements of a model, or why there is none; found out once."""
        key = (model.sha256, choose_head(self._model(model), model), parse_dtype(dtype))
        if key not in self._fast:
            try:
                if self.device.type != "cpu":
                    raise UnfitError(f"symmetrix is used on CPUs only, and this is {self.device}")
                folder = prepared_folder(self._settings.cache)
                self._fast[key] = prepare(self._model(model), model, dtype, folder, torch.get_num_threads(), stop)
            except UnfitError as error:
                self._fast[key] = error
                if self.device.type == "cpu":  # elsewhere nobody expects it
                    self._notices.append(f"model {model.key}: torch instead of symmetrix: {error}")
        return self._fast[key]

    def _agreements(
        self, model: ModelFile, fast: SymmetrixEvaluator, structure: Structure, stage: str
    ) -> list[Agreement]:
        """Compare the fast evaluator with the reference in double precision, once per set of elements."""
        elements = frozenset(int(z) for z in structure.numbers)
        agreements = []
        for compare in COMPARISONS[stage]:
            key = (model.sha256, choose_head(self._model(model), model), fast.dtype, elements, compare)
            if key not in self._compared:
                agreement = compare(fast, self.evaluator(model, elements, "float64"), structure)
                if self._excess(agreement) > 1.0:
                    names = "-".join(chemical_symbols[z] for z in sorted(elements))
                    self._notices.append(f"model {model.key}, {names}: {stage} uses torch: symmetrix gives {agreement}")
                self._compared[key] = agreement
            agreements.append(self._compared[key])
        return agreements

    def _excess(self, agreement: Agreement) -> float:
        return agreement.excess(self._settings)

    def check_elements(self, model: ModelFile, numbers: Iterable[int]) -> None:
        """Refuse elements that a model does not know.

        Raises
        ------
        TaskError
            Naming them.
        UsageError
            The file cannot be used.
        """
        lacking = sorted(set(numbers) - {int(z) for z in self._model(model).atomic_numbers})
        if lacking:
            names = ", ".join(chemical_symbols[z] for z in lacking)
            raise TaskError(f"model {model.key} does not know {names}; leave such materials out or use another model")

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
