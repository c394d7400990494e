"""The neighbour list against an independent search, while atoms move and when structures break."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from matscipy.neighbours import neighbour_list

from driver.archive.records import Structure
from driver.engine.batch import StructureBatch
from driver.engine.neighbors import Edges, NeighborList

CUTOFF_A = 4.5


def batch_of(structures: Sequence[Structure], dtype: torch.dtype = torch.float64) -> StructureBatch:
    return StructureBatch.from_structures(structures, dtype=dtype)


def crystal(seed: int, atoms: int = 6, side_A: float = 5.0) -> Structure:
    random = np.random.default_rng(seed)
    cell = side_A * (np.eye(3) + random.uniform(-0.2, 0.2, (3, 3)))
    return Structure(np.full(atoms, 17), random.random((atoms, 3)) @ cell, cell)


def as_found(edges: Edges, batch: StructureBatch) -> np.ndarray:
    """Rows (receiver, sender, x, y, z) in a canonical order."""
    vectors = edges.vectors(batch.positions).double().numpy()
    return canonical(edges.receivers.numpy(), edges.senders.numpy(), vectors)


def expected(batch: StructureBatch, usable: Sequence[int] | None = None) -> np.ndarray:
    """The same from matscipy, structure by structure."""
    rows, begin = [], 0
    for b, count in enumerate(batch.counts):
        if usable is None or b in usable:
            positions = batch.positions[begin : begin + count].double().numpy()
            i, j, vectors = neighbour_list(
                "ijD", positions=positions, cell=batch.cells[b].double().numpy(), pbc=[True] * 3, cutoff=CUTOFF_A
            )
            rows.append(canonical(j + begin, i + begin, vectors))
        begin += count
    return np.concatenate(rows)


def canonical(receivers: np.ndarray, senders: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    rows = np.column_stack((receivers, senders, np.round(vectors, 6) + 0.0))
    return rows[np.lexsort(rows.T[::-1])]


@pytest.mark.parametrize(
    "structure",
    [
        crystal(1),
        crystal(2, atoms=40, side_A=12.0),
        Structure(np.array([9]), np.zeros((1, 3)), 2.2 * np.eye(3)),
        Structure(
            np.array([9]), np.array([[0.3, 50.0, -70.0]]), np.array([[2.0, 0, 0], [1.0, 2.1, 0], [0.9, 0.8, 9.0]])
        ),
        Structure(np.array([9, 9]), np.array([[0.0, 0, 0], [0, 0, 2.0]]), np.diag([20.0, 21.0, 22.0])),
        Structure(np.array([9]), np.zeros((1, 3)), -3.0 * np.eye(3)),
    ],
    ids=["small", "large", "one-atom", "sheared-one-atom", "dilute", "left-handed"],
)
@pytest.mark.parametrize("skin_A", [0.0, 0.5])
def test_finds_what_an_independent_search_finds(structure: Structure, skin_A: float) -> None:
    batch = batch_of([structure])
    edges = NeighborList(CUTOFF_A, skin_A).update(batch)
    np.testing.assert_allclose(as_found(edges, batch), expected(batch), atol=2e-6)


def test_atoms_may_lie_outside_the_cell() -> None:
    inside = crystal(3)
    random = np.random.default_rng(0)
    outside = Structure(
        inside.numbers, inside.positions + random.integers(-40, 40, inside.positions.shape) @ inside.cell, inside.cell
    )
    first, second = (as_found(NeighborList(CUTOFF_A).update(b), b) for b in (batch_of([inside]), batch_of([outside])))
    np.testing.assert_allclose(first, second, atol=2e-6)


def test_edges_are_sorted_by_receiver_and_come_in_both_directions() -> None:
    batch = batch_of([crystal(4), crystal(5, atoms=11, side_A=7.0), crystal(6, atoms=1, side_A=2.5)])
    edges = NeighborList(CUTOFF_A).update(batch)
    assert (edges.receivers.diff() >= 0).all()
    vectors = edges.vectors(batch.positions).numpy()
    forward = canonical(edges.receivers.numpy(), edges.senders.numpy(), vectors)
    backward = canonical(edges.senders.numpy(), edges.receivers.numpy(), -vectors)
    np.testing.assert_allclose(forward, backward, atol=2e-6)
    assert (batch.system[edges.senders] == batch.system[edges.receivers]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_walk_always_has_the_edges_of_a_fresh_list(dtype: torch.dtype) -> None:
    batch = batch_of([crystal(7), crystal(8, atoms=10, side_A=6.5)], dtype)
    neighbors = NeighborList(CUTOFF_A, 0.4)
    torch.manual_seed(0)
    for _ in range(60):
        batch = batch.moved(batch.positions + 0.03 * torch.randn_like(batch.positions))
        fresh = NeighborList(CUTOFF_A, 0.0).update(batch)
        kept = neighbors.update(batch)
        np.testing.assert_allclose(as_found(kept, batch), as_found(fresh, batch), atol=2e-5)
    assert 4 < neighbors.searches < 60


def test_searches_only_a_structure_that_has_moved_half_the_skin() -> None:
    batch = batch_of([crystal(9), crystal(10), crystal(11)])
    neighbors = NeighborList(CUTOFF_A, 0.5)
    neighbors.update(batch)
    assert neighbors.searches == 3
    step = torch.zeros_like(batch.positions)
    step[6, 0] = 0.249  # an atom of the second structure
    neighbors.update(batch.moved(batch.positions + step))
    assert neighbors.searches == 3
    step[6, 0] = 0.251
    moved = batch.moved(batch.positions + step)
    edges = neighbors.update(moved)
    assert neighbors.searches == 4
    np.testing.assert_allclose(as_found(edges, moved), expected(moved), atol=2e-6)
    neighbors.update(batch)  # back again: relative to its new reference that is as far
    assert neighbors.searches == 5


def test_notices_positions_changed_in_place() -> None:
    batch = batch_of([crystal(12)])
    neighbors = NeighborList(CUTOFF_A, 0.5)
    neighbors.update(batch)
    batch.positions[0] += 1.0
    np.testing.assert_allclose(as_found(neighbors.update(batch), batch), expected(batch), atol=2e-6)


def test_searches_again_when_a_cell_changes() -> None:
    batch = batch_of([crystal(13), crystal(14)])
    neighbors = NeighborList(CUTOFF_A)
    neighbors.update(batch)
    batch.cells[1] *= 1.001
    edges = neighbors.update(batch)
    assert neighbors.searches == 3
    np.testing.assert_allclose(as_found(edges, batch), expected(batch), atol=2e-6)


def test_takes_another_batch() -> None:
    neighbors = NeighborList(CUTOFF_A)
    for structures in ([crystal(15), crystal(16)], [crystal(17)], [crystal(18, atoms=3)], [crystal(19, atoms=3)]):
        batch = batch_of(structures)
        np.testing.assert_allclose(as_found(neighbors.update(batch), batch), expected(batch), atol=2e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_lost_structure_has_no_edges_and_leaves_the_others_alone(value: float) -> None:
    batch = batch_of([crystal(20), crystal(21), crystal(22)])
    neighbors = NeighborList(CUTOFF_A)
    neighbors.update(batch)
    positions = batch.positions.clone()
    positions[7, 1] = value
    lost = batch.moved(positions)
    edges = neighbors.update(lost)
    assert edges.unusable == (1,)
    np.testing.assert_array_equal(as_found(edges, lost), expected(lost, usable=(0, 2)))
    edges = neighbors.update(batch)  # and back
    assert edges.unusable == ()
    np.testing.assert_allclose(as_found(edges, batch), expected(batch), atol=2e-6)


def test_structures_of_a_batch_are_searched_anew_lost_and_found_in_any_order() -> None:
    """What is spliced in is what a fresh list has, whichever structures are due together."""
    batch = batch_of([crystal(30 + i, atoms=3 + i % 4) for i in range(9)])
    neighbors = NeighborList(CUTOFF_A, 0.4)
    random = np.random.default_rng(5)
    for _ in range(40):
        positions = batch.positions.clone()
        due = random.random(batch.size) < random.choice([0.0, 0.2, 1.0])
        lost = random.random(batch.size) < 0.15
        for b in range(batch.size):
            own = batch.system == b
            if due[b]:
                positions[own] += torch.from_numpy(random.uniform(-0.4, 0.4, (int(own.sum()), 3)))
            if lost[b]:
                positions[own] = torch.nan
        now = batch.moved(positions)
        fresh, kept = NeighborList(CUTOFF_A, 0.0).update(now), neighbors.update(now)
        assert kept.unusable == fresh.unusable == tuple(np.flatnonzero(lost))
        assert torch.equal(kept.receivers, kept.receivers.sort().values)
        np.testing.assert_allclose(as_found(kept, now), as_found(fresh, now), atol=2e-6)


@pytest.mark.parametrize(
    "cell",
    [np.zeros((3, 3)), 0.01 * np.eye(3), np.diag([0.01, 30.0, 30.0]), np.full((3, 3), np.nan), np.ones((3, 3))],
    ids=["zero", "tiny", "sliver", "nan", "flat"],
)
def test_a_collapsed_cell_is_unusable_at_once(cell: np.ndarray) -> None:
    structure = crystal(23)
    batch = batch_of([Structure(structure.numbers, structure.positions, cell), structure])
    begin = time.perf_counter()
    edges = NeighborList(CUTOFF_A).update(batch)
    assert time.perf_counter() - begin < 1.0
    assert edges.unusable == (0,)
    assert (batch.system[edges.receivers] == 1).all()


def test_collapsed_atoms_keep_their_edges_so_that_the_potential_fails() -> None:
    structure = crystal(24, atoms=30, side_A=8.0)
    begin = time.perf_counter()
    edges = NeighborList(CUTOFF_A).update(
        batch_of([Structure(structure.numbers, np.zeros_like(structure.positions), structure.cell)])
    )
    assert time.perf_counter() - begin < 1.0
    assert ((edges.senders == 0) & (edges.receivers == 1)).any()


@pytest.mark.parametrize(("cutoff_A", "skin_A"), [(0.0, 0.5), (-1.0, 0.5), (5.0, -0.1)])
def test_refuses_nonsense(cutoff_A: float, skin_A: float) -> None:
    with pytest.raises(ValueError, match="cutoff_A > 0 and skin_A >= 0"):
        NeighborList(cutoff_A, skin_A)
