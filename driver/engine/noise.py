"""Random numbers of molecular dynamics: every trajectory segment has streams of its own.

A stream is numpy's Philox generator keyed by a hash of what the numbers are for, so that they depend on nothing else:
not on which structures share the batch, nor on how many ranks there are, nor on where a campaign was interrupted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from driver.engine.state import atom_rows

BLOCK_STEPS = 64
"""Time steps drawn at once; the numbers do not depend on it."""


@dataclass(frozen=True)
class StreamIdentity:
    """One segment of one trajectory: the seed of the campaign, keys of material and model, replica, segment."""

    seed: int
    material: str
    model: str
    replica: int
    segment: int

    def generator(self, purpose: str) -> np.random.Generator:
        """Return this segment's generator for one purpose ("velocities", "kicks"), from its beginning."""
        identity = json.dumps([self.seed, self.material, self.model, self.replica, self.segment, purpose])
        digest = hashlib.blake2b(identity.encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


@dataclass(frozen=True)
class Draw:
    """Random numbers for one time step of a batch; what an ensemble does not use is None.

    Attributes
    ----------
    kicks : (N, 3) float64 or None
        Standard normal.
    chances : (N,) float64 or None
        Uniform in [0, 1).
    com_kicks : (B, 3) float64 or None
        Standard normal.
    """

    kicks: torch.Tensor | None = None
    chances: torch.Tensor | None = None
    com_kicks: torch.Tensor | None = None


class Noise:
    """Random numbers for a batch, step by step.

    Parameters
    ----------
    identities : sequence of StreamIdentity
        One per structure.
    counts : sequence of int
        Atoms per structure.
    quantities : sequence of str
        The fields of `Draw` to fill.
    device : torch.device or str
    block_steps : int
        Steps drawn at once on the host and sent to the device in one copy.
    """

    def __init__(
        self,
        identities: Sequence[StreamIdentity],
        counts: Sequence[int],
        quantities: Sequence[str],
        *,
        device: torch.device | str = "cpu",
        block_steps: int = BLOCK_STEPS,
    ) -> None:
        self._counts = tuple(counts)
        self._device = torch.device(device)
        self._block_steps = block_steps
        # A generator per quantity, so that the numbers do not depend on the block length.
        self._generators = {q: [i.generator(q) for i in identities] for q in quantities}
        self._block: dict[str, torch.Tensor] = {}
        self._next = block_steps

    def draw(self) -> Draw:
        """Return the numbers of the next time step."""
        if self._next == self._block_steps:
            self._block = {quantity: self._draw_block(quantity) for quantity in self._generators}
            self._next = 0
        row = self._next
        self._next += 1
        return Draw(**{quantity: values[row] for quantity, values in self._block.items()})

    def select(self, keep: Sequence[int]) -> None:
        """Drop all structures but `keep` (ascending indices); the streams of these go on as if nothing had happened."""
        rows = atom_rows(self._counts, keep).to(self._device)
        systems = torch.as_tensor(list(keep), dtype=torch.int64, device=self._device)
        for quantity, values in self._block.items():
            self._block[quantity] = values[:, systems if quantity == "com_kicks" else rows]
        self._generators = {q: [streams[i] for i in keep] for q, streams in self._generators.items()}
        self._counts = tuple(self._counts[i] for i in keep)

    def _draw_block(self, quantity: str) -> torch.Tensor:
        steps = self._block_steps
        parts = []
        for generator, atoms in zip(self._generators[quantity], self._counts, strict=True):
            if quantity == "kicks":
                parts.append(generator.standard_normal((steps, atoms, 3)))
            elif quantity == "com_kicks":
                parts.append(generator.standard_normal((steps, 1, 3)))
            else:
                parts.append(generator.random((steps, atoms)))
        block = torch.from_numpy(np.concatenate(parts, axis=1))
        if self._device.type == "cuda":
            return block.pin_memory().to(self._device, non_blocking=True)
        return block.to(self._device)
