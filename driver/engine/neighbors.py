"""Neighbour lists of many periodic structures with a skin: built seldom, exact always."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import vesin

from driver.engine.batch import StructureBatch

MAX_DENSITY_PER_A3 = 2.0
"""Atoms per cubic angstrom beyond which a cell counts as collapsed (diamond has 0.18)."""
MIN_HEIGHT_A = 0.2
"""Distance between opposite faces below which a cell counts as collapsed."""
MAX_FRACTIONAL = 1e6
"""An atom that many cells away from the origin has been flung out of its structure."""


@dataclass(frozen=True)
class Edges:
    """Directed pairs of atoms closer than the cutoff, of all structures of a batch.

    The vector of an edge is `positions[receivers] - positions[senders] + shifts_A`. Every pair appears in both
    directions, also that of an atom with its own periodic image.

    Attributes
    ----------
    senders, receivers : (E,) int64
        Indices into the batch; ascending in `receivers`, so edges of one structure are contiguous.
    shifts_A : (E, 3) float
        Lattice translation of each edge in angstrom.
    unusable : tuple of int
        Structures without edges because they have non-finite coordinates, a collapsed cell, or an atom flung out of
        it. Nothing is known of their energy.
    """

    senders: torch.Tensor
    receivers: torch.Tensor
    shifts_A: torch.Tensor
    unusable: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.senders)

    def vectors(self, positions: torch.Tensor) -> torch.Tensor:
        """Return the edge vectors (E, 3) in angstrom at `positions` (N, 3)."""
        return positions.index_select(0, self.receivers) - positions.index_select(0, self.senders) + self.shifts_A


@dataclass(frozen=True)
class _Candidates:
    """Pairs of one structure within cutoff + skin when they were built: local indices and integer cell shifts."""

    senders: torch.Tensor
    receivers: torch.Tensor
    cell_shifts: torch.Tensor
    usable: bool


class NeighborList:
    """Edges of a batch, kept up to date while its atoms move.

    Pairs are searched within `cutoff_A + skin_A` and filtered by their true distance at each update, so the edges are
    those of a fresh list and a potential never sees the skin. A structure is searched again only when one of its own
    atoms has moved more than half of the skin since its last search, or its cell has changed.

    Parameters
    ----------
    cutoff_A : float
        Range of the potential.
    skin_A : float
        0 searches whenever an atom has moved at all.

    Attributes
    ----------
    searches : int
        How many times a structure has been searched so far.
    """

    def __init__(self, cutoff_A: float, skin_A: float = 0.5) -> None:
        if cutoff_A <= 0 or skin_A < 0:
            raise ValueError(f"a neighbour list needs cutoff_A > 0 and skin_A >= 0, not {cutoff_A} and {skin_A}")
        self.cutoff_A = cutoff_A
        self.skin_A = skin_A
        self.searches = 0
        self._layout: tuple[tuple[int, ...], torch.dtype, torch.device] | None = None
        self._candidates: list[_Candidates] = []
        self._reference_positions = torch.empty(0, 3)
        self._reference_cells = torch.empty(0, 3, 3)
        self._all = Edges(*(torch.empty(0),) * 3)

    def update(self, batch: StructureBatch) -> Edges:
        """Return the edges of a batch at its present positions and cells.

        Parameters
        ----------
        batch : StructureBatch
            Usually the batch of the last call with other positions; any other batch is searched from scratch.

        Returns
        -------
        Edges
            Pairs with a distance below `cutoff_A`, on the batch's device and in its dtype.
        """
        layout = (batch.counts, batch.positions.dtype, batch.positions.device)
        if layout != self._layout:
            self._layout = layout
            self._candidates = []
            self._reference_positions = batch.positions.detach().clone()
            self._reference_cells = batch.cells.clone()
            self._search(batch, range(batch.size))
        else:
            stale = self._stale(batch).nonzero().flatten().tolist()
            if stale:
                self._search(batch, stale)
        return self._within_cutoff(batch.positions.detach())

    def _stale(self, batch: StructureBatch) -> torch.Tensor:
        """Tell which structures (B,) must be searched again; a coordinate that is not finite always counts as moved."""
        squared = (batch.positions.detach() - self._reference_positions).square().sum(-1)
        moved = ~(squared <= (0.5 * self.skin_A) ** 2)
        count = torch.zeros(batch.size, dtype=torch.int32, device=moved.device)
        count.index_add_(0, batch.system, moved.to(torch.int32))
        return (count > 0) | (batch.cells != self._reference_cells).flatten(1).any(-1)

    def _search(self, batch: StructureBatch, which: Sequence[int]) -> None:
        """Search the structures `which` and make their present state the reference."""
        positions = batch.positions.detach().to("cpu", torch.float64).numpy()
        cells = batch.cells.detach().to("cpu", torch.float64).numpy()
        ends = np.cumsum(batch.counts)
        first = not self._candidates
        changed = first
        for b in which:
            begin, end = ends[b] - batch.counts[b], ends[b]
            candidates = self._candidates_of(positions[begin:end], cells[b], batch)
            if first:
                self._candidates.append(candidates)
            else:
                # A structure that stays unusable is looked at in every step, but changes nothing.
                changed |= candidates.usable or self._candidates[b].usable
                self._candidates[b] = candidates
                self._reference_positions[begin:end] = batch.positions[begin:end].detach()
                self._reference_cells[b] = batch.cells[b]
        if changed:
            self._all = self._joined(batch)

    def _candidates_of(
        self, positions: npt.NDArray[np.float64], cell: npt.NDArray[np.float64], batch: StructureBatch
    ) -> _Candidates:
        """Search one structure."""
        self.searches += 1
        usable = _is_searchable(positions, cell)
        if usable:
            search = vesin.NeighborList(cutoff=self.cutoff_A + self.skin_A, full_list=True, sorted=True, n_threads=1)
            first, second, shifts = search.compute(positions, cell, True, "ijS")
        else:
            first, second, shifts = np.empty(0), np.empty(0), np.empty((0, 3))
        device = batch.positions.device
        return _Candidates(
            # vesin sorts by the first index and shifts the second: the first is the receiver, the shift changes sign
            senders=torch.from_numpy(second.astype(np.int64)).to(device),
            receivers=torch.from_numpy(first.astype(np.int64)).to(device),
            cell_shifts=torch.from_numpy(-shifts.astype(np.float64)).to(device, batch.positions.dtype),
            usable=usable,
        )

    def _joined(self, batch: StructureBatch) -> Edges:
        """Put the candidates of all structures side by side."""
        begins = np.cumsum((0, *batch.counts[:-1])).tolist()
        parts = list(zip(self._candidates, begins, strict=True))
        return Edges(
            senders=torch.cat([c.senders + begin for c, begin in parts]),
            receivers=torch.cat([c.receivers + begin for c, begin in parts]),
            shifts_A=torch.cat([c.cell_shifts @ cell for c, cell in zip(self._candidates, batch.cells, strict=True)]),
            unusable=tuple(b for b, c in enumerate(self._candidates) if not c.usable),
        )

    def _within_cutoff(self, positions: torch.Tensor) -> Edges:
        """Keep the candidates that are closer than the cutoff now."""
        squared = self._all.vectors(positions).square().sum(-1)
        # A pair at distance zero or not a number is kept: the potential must see it fail.
        keep = (~(squared >= self.cutoff_A**2)).nonzero().flatten()
        return Edges(
            senders=self._all.senders.index_select(0, keep),
            receivers=self._all.receivers.index_select(0, keep),
            shifts_A=self._all.shifts_A.index_select(0, keep),
            unusable=self._all.unusable,
        )


def _is_searchable(positions: npt.NDArray[np.float64], cell: npt.NDArray[np.float64]) -> bool:
    """Tell whether a search ends with a sensible number of pairs."""
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        return False
    volume = abs(np.linalg.det(cell))
    if volume * MAX_DENSITY_PER_A3 < len(positions):
        return False
    faces = np.linalg.norm(np.cross(np.roll(cell, -1, axis=0), np.roll(cell, -2, axis=0)), axis=1)
    if (volume < MIN_HEIGHT_A * faces).any():
        return False
    return bool((np.abs(positions @ np.linalg.inv(cell)) < MAX_FRACTIONAL).all())
