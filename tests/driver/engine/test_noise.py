from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import stats

from driver.engine.noise import Noise, StreamIdentity

IDENTITY = StreamIdentity(seed=7, material="Cs2AgBiBr6", model="demo", replica=1, segment=3)
QUANTITIES = ("kicks", "chances", "com_kicks")


def test_a_stream_depends_on_every_part_of_its_identity_and_on_its_purpose():
    others = [
        replace(IDENTITY, seed=8),
        replace(IDENTITY, material="Cs2AgBiCl6"),
        replace(IDENTITY, model="demo2"),
        replace(IDENTITY, replica=2),
        replace(IDENTITY, segment=4),
        replace(IDENTITY, replica=3, segment=1),
    ]
    first = [i.generator("kicks").standard_normal(4).tobytes() for i in [IDENTITY, *others]]
    first.append(IDENTITY.generator("velocities").standard_normal(4).tobytes())
    assert len(set(first)) == len(first)
    assert IDENTITY.generator("kicks").standard_normal(4).tobytes() == first[0]


def test_streams_are_pinned():
    """A stream that changes with a release would change every resumed trajectory."""
    np.testing.assert_array_equal(
        IDENTITY.generator("kicks").integers(0, 2**32, 3), [1039505535, 2252694574, 1032499673]
    )


def test_numbers_do_not_depend_on_batch_mates_or_block_length():
    mates = [replace(IDENTITY, material="A"), IDENTITY, replace(IDENTITY, material="B")]
    crowd = Noise(mates, [3, 5, 2], QUANTITIES, block_steps=7)
    alone = Noise([IDENTITY], [5], QUANTITIES, block_steps=64)
    for _ in range(30):
        ours, single = crowd.draw(), alone.draw()
        assert torch.equal(ours.kicks[3:8], single.kicks)
        assert torch.equal(ours.chances[3:8], single.chances)
        assert torch.equal(ours.com_kicks[1:2], single.com_kicks)


def test_dropping_a_structure_leaves_the_others_streams_alone():
    mates = [replace(IDENTITY, material="A"), IDENTITY, replace(IDENTITY, material="B")]
    crowd = Noise(mates, [3, 5, 2], QUANTITIES, block_steps=8)
    alone = Noise([IDENTITY], [5], QUANTITIES, block_steps=8)
    for step in range(30):
        if step == 3:
            crowd.select([1, 2])
        if step == 21:
            crowd.select([0])
        ours, single = crowd.draw(), alone.draw()
        begin = 3 if step < 3 else 0
        assert torch.equal(ours.kicks[begin : begin + 5], single.kicks)
        assert torch.equal(ours.chances[begin : begin + 5], single.chances)


def test_only_what_is_asked_for_is_drawn():
    draw = Noise([IDENTITY], [5], ("kicks",)).draw()
    assert draw.chances is None
    assert draw.com_kicks is None
    assert draw.kicks.dtype == torch.float64


def test_distributions():
    noise = Noise([IDENTITY], [50], QUANTITIES)
    draws = [noise.draw() for _ in range(200)]
    kicks = torch.stack([d.kicks for d in draws]).numpy().ravel()
    chances = torch.stack([d.chances for d in draws]).numpy().ravel()
    assert stats.kstest(kicks, "norm").pvalue > 1e-3
    assert stats.kstest(chances, "uniform").pvalue > 1e-3
    # successive steps are independent: correlation within 4 standard errors
    a, b = kicks[:-150], kicks[150:]
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(len(a))
