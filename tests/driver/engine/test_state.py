from __future__ import annotations

import numpy as np
import torch

from driver.engine.state import Particles, PhaseState, atom_rows


def state():
    generator = np.random.default_rng(1)
    masses = [generator.uniform(10, 100, n) for n in (3, 5, 2)]
    vectors = (torch.as_tensor(generator.normal(size=(10, 3))) for _ in range(3))
    return PhaseState(Particles.from_masses(masses), *vectors, torch.arange(3, dtype=torch.float64))


def test_selected_structures_keep_their_values():
    whole = state()
    part = whole.select([0, 2])
    rows = [0, 1, 2, 8, 9]
    assert part.particles.counts == (3, 2)
    assert part.particles.system.tolist() == [0, 0, 0, 1, 1]
    for name in ("positions", "velocities", "forces"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[rows])
    assert part.energies.tolist() == [0, 2]
    assert torch.equal(part.kinetic_energies(), whole.kinetic_energies()[[0, 2]])
    assert torch.equal(part.temperatures(), whole.temperatures()[[0, 2]])
    assert torch.equal(
        part.particles.com_velocities(part.velocities), whole.particles.com_velocities(whole.velocities)[[0, 2]]
    )


def test_drift_is_removed_structure_by_structure():
    whole = state()
    p = whole.particles
    momenta = torch.zeros(3, 3, dtype=torch.float64).index_add_(
        0, p.system, p.masses * p.without_drift(whole.velocities)
    )
    assert momenta.abs().max() < 1e-13
    np.testing.assert_allclose(p.mass_fractions.numpy()[:3].sum(), 1.0)


def test_atom_rows():
    assert atom_rows((3, 5, 2), [0, 2]).tolist() == [0, 1, 2, 8, 9]
    assert atom_rows((3, 5, 2), []).tolist() == []
