"""How much of the forces in a trajectory the harmonic model leaves unexplained.

With u the displacements from the static reference supercell and Phi the force constants, the harmonic forces are
F2 = -Phi u, the anharmonic ones FA = F - F2, and sigma = std(FA) / std(F) (Knoop, Purcell, Scheffler and Carbogno,
Phys. Rev. Materials 4, 083809 (2020)). A harmonic crystal has sigma 0; at 1 the harmonic model explains nothing.

Everything is computed from the first two moments of the force components of each frame and site, so trajectories may
be reduced piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ForceMoments:
    """Moments of the force components of one trajectory, frame by frame and site by site.

    Attributes
    ----------
    sites : tuple of str
        Names of the S groups of atoms.
    components : (S,) int
        Force components (three per atom) in each group.
    total, anharmonic : (T, S, 2) float
        For each frame and group: the sum over components of F (in eV angstrom-1) and of its square; the same of FA.
    """

    sites: tuple[str, ...]
    components: npt.NDArray[np.int64]
    total: Floats
    anharmonic: Floats

    def __len__(self) -> int:
        return len(self.total)


@dataclass(frozen=True)
class BlockError:
    """Standard error of a mean of correlated data.

    Attributes
    ----------
    error : float
        nan with fewer than two values.
    block_frames : int
        Length of the blocks that it was taken from.
    converged : bool
        False: the series is too short for blocks that are independent, and the error is a lower bound.
    """

    error: float
    block_frames: int
    converged: bool


@dataclass(frozen=True)
class Sigma:
    """The anharmonicity measure of a set of trajectories, in its variants.

    Attributes
    ----------
    pooled : float
        std(FA) / std(F) over all frames, atoms and components together.
    error : BlockError
        Of `pooled`.
    frame_mean : float
        The ratio taken within each frame, averaged over frames. Not the same number as `pooled`.
    by_site : dict
        Site -> `pooled` restricted to that site's atoms.
    frames : int
    """

    pooled: float
    error: BlockError
    frame_mean: float
    by_site: dict[str, float]
    frames: int


def displacements(positions_A: Floats, reference_A: Floats, cell_A: Floats, masses_u: Floats) -> Floats:
    """Return displacements from the reference by minimum image, without the drift of the centre of mass.

    Positions may be wrapped or not, and the crystal may have drifted by any amount: displacements are first taken
    relative to atom 0, so only the relative displacement of two atoms must stay below half the supercell. The force
    constants' translational invariance makes F2 independent of the drift; taking it out keeps that so for force
    constants that obey the sum rule only nearly.

    Parameters
    ----------
    positions_A : (T, N, 3) float
    reference_A : (N, 3) float
    cell_A : (3, 3) float
        Of the supercell, lattice vectors in rows.
    masses_u : (N,) float

    Returns
    -------
    (T, N, 3) float64
        In angstrom.
    """
    raw = np.asarray(positions_A, dtype=np.float64) - reference_A
    relative = raw - raw[:, :1]
    fractional = relative @ np.linalg.inv(cell_A)
    relative = (fractional - np.rint(fractional)) @ cell_A
    drift = np.einsum("tni,n->ti", relative, masses_u / masses_u.sum())
    return relative - drift[:, None]


def harmonic_forces(displacements_A: Floats, force_constants_eV_A2: Floats) -> Floats:
    """Return F2 = -Phi u in eV angstrom-1, shape (T, N, 3), from u (T, N, 3) and Phi (3N, 3N)."""
    flat = displacements_A.reshape(len(displacements_A), -1)
    return -(flat @ force_constants_eV_A2.T).reshape(displacements_A.shape)


def force_moments(forces_eV_A: Floats, harmonic_eV_A: Floats, sites: Sequence[str]) -> ForceMoments:
    """Reduce the forces of a trajectory to moments.

    Parameters
    ----------
    forces_eV_A, harmonic_eV_A : (T, N, 3) float
        F and F2.
    sites : sequence of str, length N
        Which site each atom belongs to.
    """
    names = tuple(dict.fromkeys(sites))
    atoms = np.asarray(sites)
    total = np.asarray(forces_eV_A, dtype=np.float64)
    anharmonic = total - harmonic_eV_A
    groups = [np.flatnonzero(atoms == name) for name in names]
    return ForceMoments(
        sites=names,
        components=np.array([3 * len(group) for group in groups], dtype=np.int64),
        total=np.stack([_moments(total[:, group]) for group in groups], axis=1),
        anharmonic=np.stack([_moments(anharmonic[:, group]) for group in groups], axis=1),
    )


def _moments(forces: Floats) -> Floats:
    return np.stack([forces.sum(axis=(1, 2)), (forces**2).sum(axis=(1, 2))], axis=1)


def _variance(moments: Floats, count: npt.NDArray[np.int64] | int | Floats) -> Floats:
    """Return the variance (ddof 0) from sums and sums of squares in the last axis."""
    return np.asarray(moments[..., 1] / count - (moments[..., 0] / count) ** 2)


def _ratio(anharmonic: Floats, total: Floats, count: npt.NDArray[np.int64] | int | Floats) -> Floats:
    """Return sigma; nan where there are no forces to compare with."""
    variance = _variance(total, count)
    numerator = np.clip(_variance(anharmonic, count), 0.0, None)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(variance > 0.0, np.sqrt(numerator / variance), np.nan)


def sigma(replicas: Sequence[ForceMoments]) -> Sigma:
    """Return the anharmonicity measure of several trajectories (replicas) of one crystal taken together.

    Raises
    ------
    ValueError
        If there is no frame at all, or the replicas do not have the same sites.
    """
    frames = sum(len(replica) for replica in replicas)
    if frames == 0:
        raise ValueError("no frames to reduce")
    if len({replica.sites for replica in replicas}) != 1:
        raise ValueError("replicas differ in their sites")
    first = replicas[0]
    total = np.concatenate([replica.total for replica in replicas])
    anharmonic = np.concatenate([replica.anharmonic for replica in replicas])
    per_site = _ratio(anharmonic.sum(axis=0), total.sum(axis=0), first.components * frames)
    components = int(first.components.sum())
    pooled = float(_ratio(anharmonic.sum(axis=(0, 1)), total.sum(axis=(0, 1)), components * frames))
    return Sigma(
        pooled=pooled,
        error=block_error(_influences([replica for replica in replicas if len(replica)], pooled)),
        frame_mean=float(_ratio(anharmonic.sum(axis=1), total.sum(axis=1), components).mean()),
        by_site={name: float(value) for name, value in zip(first.sites, per_site, strict=True)},
        frames=frames,
    )


def running_sigma(replica: ForceMoments) -> Floats:
    """Return sigma (pooled) of the first 1, 2, ... T frames of one trajectory, to judge convergence; shape (T,)."""
    count = int(replica.components.sum()) * np.arange(1, len(replica) + 1)
    total = replica.total.sum(axis=1).cumsum(axis=0)
    anharmonic = replica.anharmonic.sum(axis=1).cumsum(axis=0)
    return _ratio(anharmonic, total, count)


def _influences(replicas: Sequence[ForceMoments], pooled: float) -> list[Floats]:
    """Return what each frame contributes to the pooled sigma, to first order, so that errors of means apply; (T,) each.

    sigma^2 = A / B is a ratio of means over frames, a change of which is dsigma = (dA - sigma^2 dB) / (2 sigma B).
    The means of F and FA, zero but for rounding, are neglected here.
    """
    if not pooled > 0.0:
        return [np.zeros(len(replica)) for replica in replicas]
    anharmonic = [replica.anharmonic[..., 1].sum(axis=1) for replica in replicas]
    total = [replica.total[..., 1].sum(axis=1) for replica in replicas]
    scale = 2.0 * pooled * np.concatenate(total).mean()
    return [(a - pooled**2 * b) / scale for a, b in zip(anharmonic, total, strict=True)]


def block_error(series: Sequence[Floats]) -> BlockError:
    """Return the standard error of the mean over one or several independent correlated series, by blocking.

    Neighbouring values are averaged in pairs again and again (Flyvbjerg and Petersen, J. Chem. Phys. 91, 461 (1989));
    the length B of blocks is the shortest for which B^3 > 2 n (e_B / e_1)^4, with e_B the naive error of the block
    means and n the number of values (Lee et al., Phys. Rev. B 83, 245101 (2011)). Blocks never span two series.
    """
    blocks = [np.asarray(values, dtype=np.float64) for values in series]
    count = sum(len(values) for values in blocks)
    if count < 2:
        return BlockError(float("nan"), 1, False)
    first = error = _naive_error(blocks)
    if first == 0.0:
        return BlockError(0.0, 1, True)
    length = 1
    while True:
        if length**3 > 2 * count * (error / first) ** 4:
            return BlockError(error, length, True)
        halved = [values[: len(values) // 2 * 2].reshape(-1, 2).mean(axis=1) for values in blocks]
        if sum(len(values) for values in halved) < 4:
            return BlockError(error, length, False)
        blocks, length = halved, 2 * length
        # Few blocks scatter widely: an error that shrinks again is noise, so the largest seen is kept.
        error = max(error, _naive_error(blocks))


def _naive_error(blocks: Sequence[Floats]) -> float:
    values = np.concatenate(list(blocks))
    return float(values.std(ddof=1) / np.sqrt(len(values)))
