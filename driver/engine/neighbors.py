"""Neighbour lists of many periodic structures with a skin: built seldom, exact always."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import vesin

from driver.engine.batch import StructureBatch
from driver.engine.state import atom_rows

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
    """Pairs of one structure within cutoff + skin when they were searched, on the host; indices into the batch."""

    senders: npt.NDArray[np.int64]
    receivers: npt.NDArray[np.int64]
    shifts_A: npt.NDArray[np.float64]
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
        self._reference_positions = torch.empty(0, 3)
        self._reference_cells = torch.empty(0, 3, 3)
        self._all = Edges(*(torch.empty(0),) * 3)
        self._sizes: list[int] = []
        """Candidates of each structure, in the order in which they stand in `_all`."""

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
            self._all = Edges(*(torch.empty(0),) * 3)
            self._sizes = [0] * batch.size
            self._reference_positions = batch.positions.detach().clone()
            self._reference_cells = batch.cells.clone()
            self._search(batch, range(batch.size))
        else:
            # One copy to the host; `nonzero` on the device would make the host wait twice.
            stale = [b for b, due in enumerate(self._stale(batch).tolist()) if due]
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
        """Search the structures `which` (ascending) and make their present state the reference."""
        positions = batch.positions.detach().to("cpu", torch.float64).numpy()
        cells = batch.cells.detach().to("cpu", torch.float64).numpy()
        begins = np.cumsum((0, *batch.counts))
        found = {b: self._candidates_of(positions[begins[b] : begins[b + 1]], cells[b], begins[b]) for b in which}
        rows = atom_rows(batch.counts, which).to(batch.positions.device)
        self._reference_positions[rows] = batch.positions.detach()[rows]
        self._reference_cells[list(which)] = batch.cells[list(which)]
        # A structure that stays unusable is looked at in every step, but changes nothing.
        changed = {b: c for b, c in found.items() if c.usable or b not in self._all.unusable}
        if changed:
            self._splice(batch, changed)

    def _candidates_of(
        self, positions: npt.NDArray[np.float64], cell: npt.NDArray[np.float64], begin: int
    ) -> _Candidates:
        """Search one structure, whose first atom has the index `begin` in the batch."""
        self.searches += 1
        if not _is_searchable(positions, cell):
            none = np.empty(0, dtype=np.int64)
            return _Candidates(none, none, np.empty((0, 3)), usable=False)
        search = vesin.NeighborList(cutoff=self.cutoff_A + self.skin_A, full_list=True, sorted=True, n_threads=1)
        first, second, shifts = search.compute(positions, cell, True, "ijS")
        # vesin sorts by the first index and shifts the second: the first is the receiver, the shift changes sign
        return _Candidates(
            senders=second.astype(np.int64) + begin,
            receivers=first.astype(np.int64) + begin,
            shifts_A=-shifts.astype(np.float64) @ cell,
            usable=True,
        )

    def _splice(self, batch: StructureBatch, found: Mapping[int, _Candidates]) -> None:
        """Put candidates in the place of those that their structures had.

        What is new goes to the device in one copy, and what stays there is copied in as few pieces as there are: of
        hundreds of structures a few are due in almost every step.
        """
        device, dtype = batch.positions.device, batch.positions.dtype
        new = Edges(
            senders=torch.from_numpy(np.concatenate([c.senders for c in found.values()])).to(device),
            receivers=torch.from_numpy(np.concatenate([c.receivers for c in found.values()])).to(device),
            shifts_A=torch.from_numpy(np.concatenate([c.shifts_A for c in found.values()])).to(device, dtype),
        )
        begins = np.cumsum((0, *self._sizes)).tolist()
        pieces: list[tuple[Edges, int, int]] = []
        kept = used = 0
        for b, candidates in found.items():
            self._sizes[b] = len(candidates.senders)
            pieces += [(self._all, kept, begins[b]), (new, used, used + self._sizes[b])]
            kept, used = begins[b + 1], used + self._sizes[b]
        pieces.append((self._all, kept, begins[-1]))
        lost = {b for b, candidates in found.items() if not candidates.usable}
        joined = new if len(found) == batch.size else _joined(pieces)
        self._all = replace(joined, unusable=tuple(sorted((set(self._all.unusable) - found.keys()) | lost)))

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


def _joined(pieces: Sequence[tuple[Edges, int, int]]) -> Edges:
    """Put slices (edges, from, to) side by side."""
    return Edges(
        senders=torch.cat([edges.senders[begin:end] for edges, begin, end in pieces]),
        receivers=torch.cat([edges.receivers[begin:end] for edges, begin, end in pieces]),
        shifts_A=torch.cat([edges.shifts_A[begin:end] for edges, begin, end in pieces]),
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
