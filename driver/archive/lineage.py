"""Which results of several archives fit together: tables in, choices out; no arrays are read.

A material's stages with one model build on one relaxation, and each segment of a trajectory on the one before. The same
task done on two machines may differ in its last bits, and a trajectory then in everything; so results are put together
only where what they build on is equal, byte for byte.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from driver.archive.records import STAGES, TaskKey

Pair = tuple[str, str]
Checksums = Mapping[TaskKey, str]
"""Done tasks of a material and model in one archive, with the checksums of what they have stored."""


@dataclass(frozen=True)
class Choice:
    """Where the results of one material and model are taken from.

    Attributes
    ----------
    source : dict of TaskKey to int
        Task -> number of the archive.
    differing : frozenset of TaskKey
        Tasks done in several archives with results that are not equal; one is taken.
    left_out : frozenset of TaskKey
        Tasks that are done somewhere but build on results that are not taken: to be done again.
    """

    source: Mapping[TaskKey, int]
    differing: frozenset[TaskKey] = field(default=frozenset())
    left_out: frozenset[TaskKey] = field(default=frozenset())


def choose(material: str, model: str, done: Sequence[Checksums]) -> Choice:
    """Choose the results of one material and model that keep most tasks; the first archive where that is equal.

    Parameters
    ----------
    material, model : str
    done : sequence of mappings
        One for each archive, in the order in which they are preferred.

    Returns
    -------
    Choice
        Of relaxations that differ, the one with the most work built on it is taken, with results of all archives that
        have the same; of trajectories the longest, as a whole.
    """
    relax = TaskKey(material, model, "relax")
    relaxations = dict.fromkeys(checksums[relax] for checksums in done if relax in checksums)
    options = [_built_on(relax, checksum, done) for checksum in relaxations]
    best = max(options, key=len, default={})
    everything = {key for checksums in done for key in checksums}
    differing = {key for key in everything if len({checksums[key] for checksums in done if key in checksums}) > 1}
    return Choice(best, frozenset(differing), frozenset(everything - best.keys()))


def _built_on(relax: TaskKey, checksum: str, done: Sequence[Checksums]) -> dict[TaskKey, int]:
    numbers = [number for number, checksums in enumerate(done) if checksums.get(relax) == checksum]
    chosen = {relax: numbers[0]}
    for stage in STAGES[1:]:
        lengths = {number: chain_length(relax, stage, done[number]) for number in numbers}
        longest = max(numbers, key=lengths.__getitem__)  # the first of them
        for segment in range(lengths[longest]):
            chosen[TaskKey(relax.material, relax.model, stage, segment)] = longest
    return chosen


def chain_length(relax: TaskKey, stage: str, done: Collection[TaskKey]) -> int:
    """Return how many segments of a stage are done without a gap."""
    length = 0
    while TaskKey(relax.material, relax.model, stage, length) in done:
        length += 1
    return length


def by_pair(checksums: Checksums) -> dict[Pair, dict[TaskKey, str]]:
    """Group done tasks by material and model."""
    groups: dict[Pair, dict[TaskKey, str]] = {}
    for key, checksum in checksums.items():
        groups.setdefault((key.material, key.model), {})[key] = checksum
    return groups


def task_order(keys: Iterable[TaskKey]) -> list[TaskKey]:
    """Sort tasks so that each comes after those that it builds on."""
    return sorted(keys, key=lambda key: (key.material, key.model, STAGES.index(key.stage), key.segment))
