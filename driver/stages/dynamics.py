"""Stage dynamics: one segment of molecular dynamics for all replicas of all materials of a lease, in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from ase.data import atomic_masses

from driver.archive.h5md import State, Trajectory, trajectory_arrays
from driver.archive.records import Array, Scalar, Structure, TaskFailure, TaskKey, TaskResult
from driver.engine.batch import StructureBatch
from driver.engine.choice import Choice, together
from driver.engine.engine import Engine
from driver.engine.integrators import make_integrator
from driver.engine.interface import Evaluation
from driver.engine.neighbors import NeighborList
from driver.engine.noise import Noise, StreamIdentity
from driver.engine.state import Particles, PhaseState, maxwell_boltzmann_velocities
from driver.errors import TaskError
from driver.models import ModelFile
from driver.settings import DynamicsSettings, SupercellSettings
from driver.stages.checks import check_structure
from driver.stages.outcomes import failure, known_elements
from driver.stages.recording import (
    Recorder,
    Watchdog,
    empty_trajectory,
    energy_drift_meV_atom_ps,
    temperatures_K,
)
from driver.structures.supercells import make_supercell, supercell_matrix
from driver.tasks import TaskInput

STOP_POLL_STEPS = 5
"""Time steps between two looks at whether to stop."""


@dataclass(frozen=True)
class _Replica:
    """One trajectory: the static supercell, the state that its segment starts from, and its random numbers."""

    key: TaskKey
    supercell: Structure
    start: State
    stream: StreamIdentity


def dynamics(
    inputs: Sequence[TaskInput],
    model: ModelFile,
    engine: Engine,
    supercell: SupercellSettings,
    settings: DynamicsSettings,
    *,
    seed: int,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[TaskResult | TaskFailure]:
    """Run one segment of molecular dynamics.

    Parameters
    ----------
    inputs : sequence of TaskInput
        Relaxed unit cells; `states` as of the end of the segment before.
    model : ModelFile
    engine : Engine
    supercell : SupercellSettings
    settings : DynamicsSettings
    seed : int
        Of the campaign.
    stop : callable
        Asked every few steps; once it returns True, the stage ends and yields nothing for unfinished tasks.

    Yields
    ------
    TaskResult or TaskFailure
        One per input: a failure as soon as a run has exploded, the results at the end of the segment.
    """
    usable, failures = known_elements(inputs, model, engine)
    yield from failures
    started: list[tuple[Structure, list[_Replica]]] = []
    for task in usable:
        try:
            started.append((task.structure, _replicas(task, model.key, supercell, settings, seed)))
        except Exception as error:
            yield failure(task.key, error)
    choices = engine.choose(model, [structure for structure, _ in started], settings.dtype)
    for members in together(choices):
        replicas = [replica for index in members for replica in started[index][1]]
        chosen = {started[index][1][0].key: choices[index] for index in members}
        yield from _Segment(replicas, chosen, settings).run(stop)


def _replicas(
    task: TaskInput, model_key: str, supercell: SupercellSettings, settings: DynamicsSettings, seed: int
) -> list[_Replica]:
    key = task.key
    check_structure(task.structure)
    perfect = make_supercell(task.structure, supercell_matrix(task.structure, supercell))
    if len(perfect) < 2:
        raise TaskError("a supercell of one atom cannot move: take a larger one (supercell.matrix)")
    first_step = key.segment * settings.segment_steps
    if (task.states is None) != (key.segment == 0):
        raise TaskError(f"segment {key.segment} starts from {'nothing' if task.states is None else 'a state'}")
    if task.states is not None and len(task.states) != settings.replicas:
        raise TaskError(f"{len(task.states)} states for {settings.replicas} replicas")
    replicas = []
    for index in range(settings.replicas):
        stream = StreamIdentity(seed, key.material, model_key, index, key.segment)
        start = task.states[index] if task.states is not None else _initial_state(perfect, settings, stream)
        if start.step != first_step or start.positions_A.shape != perfect.positions.shape:
            raise TaskError(
                f"segment {key.segment} of {len(perfect)} atoms starts at step {first_step}, but its state has "
                f"{len(start.positions_A)} atoms at step {start.step}"
            )
        replicas.append(_Replica(key, perfect, start, stream))
    return replicas


def _initial_state(perfect: Structure, settings: DynamicsSettings, stream: StreamIdentity) -> State:
    """Return atoms on their sites with Maxwell-Boltzmann velocities."""
    temperature = settings.initial_temperature_K
    if temperature is None:
        # From its sites a harmonic crystal turns half of the kinetic energy into potential energy.
        temperature = settings.temperature_K * (2.0 if settings.ensemble == "nve" else 1.0)
    velocities = maxwell_boltzmann_velocities(
        atomic_masses[perfect.numbers], temperature, stream.generator("velocities")
    )
    return State(perfect.positions.copy(), velocities, 0)


class _Segment:
    """The batch of one call: state, random numbers, frames, and how to take a material out of all of them."""

    def __init__(
        self, replicas: Sequence[_Replica], choices: Mapping[TaskKey, Choice], settings: DynamicsSettings
    ) -> None:
        self._choices = choices
        self._evaluator = choices[replicas[0].key].evaluator
        device = self._evaluator.device
        self._replicas = list(replicas)
        self._settings = settings
        self._integrator = make_integrator(settings)
        counts = [len(r.supercell) for r in replicas]
        self._batch, self._neighbors = self._new_batch()
        positions = _stacked([r.start.positions_A for r in replicas], device)
        evaluation = self._force_field(positions)
        self._state = PhaseState(
            particles=Particles.from_masses([atomic_masses[r.supercell.numbers] for r in replicas], device=device),
            positions=positions,
            velocities=_stacked([r.start.velocities_A_fs for r in replicas], device),
            forces=evaluation.forces.double(),
            energies=evaluation.energy.double(),
        )
        self._noise = Noise([r.stream for r in replicas], counts, self._integrator.quantities, device=device)
        self._recorder = Recorder([empty_trajectory(r.supercell, r.start.step, settings) for r in replicas])
        self._watchdog = Watchdog(len(replicas), settings)

    def run(self, stop: Callable[[], bool]) -> Iterator[TaskResult | TaskFailure]:
        """Run to the end of the segment."""
        settings = self._settings
        for step in range(1, settings.segment_steps + 1):
            self._state = self._integrator.step(self._state, self._noise.draw(), self._force_field)
            if step % settings.frame_steps == 0:
                yield from self._frame(step)
                if not self._replicas:
                    return
            if step % STOP_POLL_STEPS == 0 and stop():
                return
        yield from self._results()

    def _force_field(self, positions: torch.Tensor) -> Evaluation:
        self._batch = self._batch.moved(positions.to(self._evaluator.dtype))
        return self._evaluator.evaluate(self._batch, self._neighbors)

    def _new_batch(self) -> tuple[StructureBatch, NeighborList]:
        evaluator = self._evaluator
        structures = [r.supercell for r in self._replicas]
        batch = StructureBatch.from_structures(structures, dtype=evaluator.dtype, device=evaluator.device)
        return batch, NeighborList(evaluator.cutoff_A)

    def _frame(self, step: int) -> Iterator[TaskFailure]:
        """Store a frame; yield a failure for each material that has exploded, and go on without it."""
        self._recorder.record(self._state)
        reasons = self._watchdog.explosions(self._state, self._batch, self._neighbors.update(self._batch))
        if not reasons:
            return
        lost: dict[TaskKey, TaskFailure] = {}
        for index, reason in reasons.items():
            replica = self._replicas[index]
            at = f"step {replica.start.step + step}, replica {replica.stream.replica}"
            error = TaskError(f"the run has exploded at {at}: {reason}; check dynamics.timestep_fs and the model")
            lost.setdefault(replica.key, failure(replica.key, error))
        self._keep([i for i, replica in enumerate(self._replicas) if replica.key not in lost])
        yield from lost.values()

    def _keep(self, keep: list[int]) -> None:
        self._replicas = [self._replicas[i] for i in keep]
        if not keep:
            return
        self._state = self._state.select(keep)
        self._noise.select(keep)
        self._recorder.select(keep)
        self._watchdog.select(keep)
        self._batch, self._neighbors = self._new_batch()

    def _results(self) -> Iterator[TaskResult]:
        """Yield one result per material, its replicas together."""
        members: dict[TaskKey, list[int]] = {}
        for index, replica in enumerate(self._replicas):
            members.setdefault(replica.key, []).append(index)
        ends = _end_states(self._state, [r.start.step + self._settings.segment_steps for r in self._replicas])
        for key, indices in members.items():
            trajectories = [self._recorder.trajectories[i] for i in indices]
            result = _result(key, trajectories, [ends[i] for i in indices], self._settings)
            yield replace(
                result,
                attributes={**result.attributes, **self._choices[key].attributes()},
                evaluator=self._evaluator.name,
                dtype=self._settings.dtype,
            )


def _stacked(arrays: Sequence[npt.NDArray[np.float64]], device: torch.device) -> torch.Tensor:
    return torch.as_tensor(np.concatenate(arrays), dtype=torch.float64, device=device)


def _end_states(state: PhaseState, steps: Sequence[int]) -> list[State]:
    """Return positions and velocities of each structure, float64, on the host."""
    ends = np.cumsum(state.particles.counts)[:-1]
    positions, velocities = (np.split(x.cpu().numpy(), ends) for x in (state.positions, state.velocities))
    return [State(p.copy(), v.copy(), step) for p, v, step in zip(positions, velocities, steps, strict=True)]


def _result(
    key: TaskKey, trajectories: Sequence[Trajectory], ends: Sequence[State], settings: DynamicsSettings
) -> TaskResult:
    """Return all replicas of a material: means over all their frames, the energy drift of the worst, and H5MD."""
    temperatures = np.concatenate([temperatures_K(t) for t in trajectories])
    scalars: dict[str, Scalar] = {
        "replicas": len(trajectories),
        "frames": len(trajectories[0]),
        "temperature_K": float(temperatures.mean()),
        "temperature_std_K": float(temperatures.std()),
        "potential_energy_eV": float(np.mean([t.potential_energy_eV for t in trajectories])),
        "energy_drift_meV_atom_ps": max((energy_drift_meV_atom_ps(t) for t in trajectories), key=abs),
        "first_step": ends[0].step - settings.segment_steps,
        "last_step": ends[0].step,
    }
    arrays: dict[str, Array] = {}
    attributes: dict[str, dict[str, Any]] = {}
    links: dict[str, str] = {}
    for replica, (trajectory, end) in enumerate(zip(trajectories, ends, strict=True)):
        own = trajectory_arrays(replica, trajectory, end, frame_dtype=settings.frame_dtype)
        arrays |= own[0]
        attributes |= own[1]
        links |= own[2]
    return TaskResult(key, scalars, arrays, attributes, links)
