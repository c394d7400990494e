"""The command `run`: from a configuration to committed results, alone or as one of many ranks.

Rank 0 composes the configuration, opens the archive and finds out what is left before any rank loads a model; the
others learn what to do in one broadcast.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import io
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from driver import __version__
from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, Header, StorageError
from driver.archive.sources import storage_error, storage_errors
from driver.archive.writer import ArchiveWriter
from driver.atomic import write_atomically
from driver.campaign import Campaign, compose_campaign
from driver.checks import check
from driver.config import is_configuration_of
from driver.devices import assign_device, assign_threads, job_has_gpus
from driver.errors import InterruptedRunError, LatdynError, UsageError
from driver.guard import Guard
from driver.interrupts import Interrupts, leaving_when_overdue
from driver.library_warnings import silence_library_warnings
from driver.master import Master, Summary
from driver.models import ModelFile
from driver.patience import patience_in
from driver.physics_settings import physics_of
from driver.progress import duration, log_to, make_progress
from driver.scheduler import Scheduler
from driver.settings import Settings
from driver.tasks import Counts
from driver.transport import (
    Handler,
    InProcessTransport,
    MasterTransport,
    MPIMaster,
    MPIWorker,
    World,
    abort_on_error,
    connect,
)
from driver.walltime import end_of_run_s
from driver.worker import UnfitWorker, Worker, WorkerIdentity

EXIT_DONE, EXIT_QUARANTINED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 75

OVERDUE_S = 10.0
"""Alone: how long after the grace a computation that cannot be interrupted may hold up the end."""

log = logging.getLogger(__name__)

_PACKAGES = ("numpy", "h5py", "ase", "phonopy", "spglib", "torch", "mace-torch", "e3nn", "mpi4py")


@dataclass(frozen=True)
class Launch:
    """What every rank must know to begin."""

    settings: Settings
    models: Mapping[str, ModelFile]


def run(
    overrides: Sequence[str],
    config_dir: Path | None = None,
    *,
    debug: bool = False,
    guard: Guard | None = None,
    early: Interrupts | None = None,
) -> int:
    """Run or resume a campaign.

    Parameters
    ----------
    overrides : sequence of str
        See `driver.config.compose`.
    config_dir : Path, optional
        Presets of the user's own.
    debug : bool
        Log every lease; let errors out with their traceback.
    guard : Guard, optional
        Of this process, if it has one already.
    early : Interrupts, optional
        Signals that have come already.

    Returns
    -------
    int
        Exit code of this rank: 0 done, 1 done but with quarantined or refused materials, 2 wrong usage, 75 interrupted
        with work left. Ranks other than 0 return 0, so that no launcher ends the job before rank 0 is through.

    Raises
    ------
    LatdynError, ArchiveError
        On rank 0, once the other ranks have been told to end.
    """
    with Interrupts(earlier=early) as early:  # a signal must not kill a rank that is still starting
        world = connect(patience_in(overrides), guard)
        abort_on_error(world)
        if world.alone:
            try:
                return _run_alone(world, overrides, config_dir, early, debug=debug)
            finally:
                world.end(EXIT_DONE)
        try:
            code = _follow(world, early) if world.rank else _lead_others(world, overrides, config_dir, early, debug)
        except (LatdynError, ArchiveError) as error:
            code = exit_code_of(error)
            if debug:
                traceback.print_exception(error)
            print(f"latdyn: {error}", file=sys.stderr, flush=True)
        world.end(code)
        return code


def _run_alone(
    world: World, overrides: Sequence[str], config_dir: Path | None, early: Interrupts, *, debug: bool
) -> int:
    campaign = load_campaign(overrides, config_dir, early)
    return _say_or_lead(world, None, campaign, early, debug=debug)


def _lead_others(
    world: World, overrides: Sequence[str], config_dir: Path | None, early: Interrupts, debug: bool
) -> int:
    """Be rank 0; whatever happens, the archive is closed and the other ranks have been told to end on return."""
    port = MPIMaster(world)
    try:
        campaign = load_campaign(overrides, config_dir, early)
        return _say_or_lead(world, port, campaign, early, debug=debug)
    finally:
        port.part()


def _say_or_lead(world: World, port: MPIMaster | None, campaign: Campaign, early: Interrupts, *, debug: bool) -> int:
    """Run the campaign, or say that there is nothing left to do."""
    counts = _nothing_left(campaign)
    if counts is None:
        return _lead(world, port, campaign, early, debug=debug)
    print(f"{campaign.configuration.settings.name}: nothing left to do; {_described(counts, campaign)}")
    return _exit_code(Summary(counts, "", 0.0), campaign)


def load_campaign(
    overrides: Sequence[str], config_dir: Path | None = None, interrupts: Interrupts | None = None
) -> Campaign:
    """Compose a campaign, refuse what `plan` refuses, and print what it warns of.

    Raises
    ------
    UsageError
        For anything wrong with settings, materials or models, or if they differ from those in the archive.
    ArchiveError
        If there is an archive that cannot be read.
    """
    campaign = compose_campaign(overrides, config_dir)
    for warning in check(campaign, lambda: interrupts is not None and interrupts.requested):
        print(f"latdyn: warning: {warning}", file=sys.stderr, flush=True)
    return campaign


def _nothing_left(campaign: Campaign) -> Counts | None:
    """Return the counts if the archive has all there is to do, so that it need not even be opened for writing."""
    if not campaign.archive.exists():
        return None
    settings = campaign.configuration.settings
    with open_archive(campaign.archive) as view:
        known = set(view.material_keys()) >= {m.key for m in campaign.materials.records}
        if not known or view.missing_structures() or not set(view.model_keys()) >= campaign.models.keys():
            return None
        counts = Scheduler(campaign.tasks, view.task_states()).counts
        retry = settings.retry == "failed" and counts.quarantined > 0
        return None if counts.left or retry else counts


def _lead(world: World, port: MPIMaster | None, campaign: Campaign, early: Interrupts, *, debug: bool) -> int:
    """Be the master (and, alone, the worker as well)."""
    settings = campaign.configuration.settings
    execution = settings.execution
    end_s = end_of_run_s(execution.walltime, os.environ)
    launch = Launch(settings, campaign.models)
    with Interrupts(execution.signals, early) as interrupts, contextlib.ExitStack() as stack:
        writer = stack.enter_context(_open(campaign))
        writer.leave = world.leave
        log_to(settings.folder / "driver.log", debug=debug)
        scheduler = _scheduler(campaign, writer, max(1, world.size - 1))
        transport: MasterTransport
        if port is None:
            transport = _serial_transport(world, launch, interrupts)
            stack.enter_context(leaving_when_overdue(interrupts, execution.grace_s + OVERDUE_S, world.leave))
        else:
            port.begin(launch, execution.patience_s)
            transport = port
        log.info("campaign %s: %s", settings.name, _described(scheduler.counts, campaign))
        progress = make_progress(scheduler.remaining_cost())
        stack.callback(progress.close)
        summary = Master(
            scheduler,
            transport,
            writer,
            interrupts,
            progress,
            execution,
            host=world.host,
            end_s=None if end_s is None else time.monotonic() + end_s - time.time(),
        ).run()
    _report(summary, campaign)
    return _exit_code(summary, campaign)


def _open(campaign: Campaign) -> ArchiveWriter:
    """Open or create the archive and enter this campaign's materials and models."""
    settings = campaign.configuration.settings
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise storage_error(settings.folder, error) from error
        raise UsageError(
            f"cannot make {settings.folder} ({error.strerror}); set runs= to a folder you may write"
        ) from error
    _refuse_foreign_files(campaign)
    header = Header(
        campaign=settings.name,
        seed=settings.seed,
        config_yaml=campaign.configuration.yaml,
        physics=physics_of(settings),
        versions=software_versions(),
    )
    writer = (
        ArchiveWriter.open(campaign.archive)
        if campaign.archive.exists()
        else ArchiveWriter.create(campaign.archive, header)
    )
    try:
        writer.set_header_config(campaign.configuration.yaml)
        writer.add_materials(campaign.materials.records)
        writer.add_models(campaign.model_records)
        writer.set_refused(campaign.materials.refused)
        if settings.retry == "failed":
            writer.requeue_quarantined()
        with storage_errors(settings.folder / "config.yaml"):
            write_atomically(settings.folder / "config.yaml", campaign.configuration.yaml)
    except BaseException:
        writer.close()
        raise
    return writer


def _refuse_foreign_files(campaign: Campaign) -> None:
    """Leave alone what no run of this campaign has written: `runs` and `name` may lead anywhere."""
    settings, archive = campaign.configuration.settings, campaign.archive
    path = settings.folder / "config.yaml"
    for file in (archive, path, settings.folder / "driver.log"):
        if os.path.lexists(file) and not file.is_file():
            raise UsageError(f"{file} is no regular file: set another name= or runs=")
    left = [Path(f"{archive}{ending}") for ending in (".journal", ".new")]
    if not archive.exists() and left[0].exists():
        raise UsageError(f"{left[0]} belongs to an archive that is not here: move it there, or set another name=")
    if left[1].is_symlink():
        raise UsageError(f"{left[1]} is a link: remove it, or set another name=")
    if path.exists() and not campaign.archive.exists() and not is_configuration_of(path, settings.name):
        raise UsageError(f"{path} is not of a campaign {settings.name!r}: set another name= or runs=")


def _scheduler(campaign: Campaign, writer: ArchiveWriter, workers: int) -> Scheduler:
    execution = campaign.configuration.settings.execution
    return Scheduler(
        campaign.tasks,
        writer.view.task_states(),
        max_attempts=execution.max_attempts,
        leases_in_flight=execution.leases_in_flight,
        workers_expected=workers,
    )


def _serial_transport(world: World, launch: Launch, interrupts: Interrupts) -> InProcessTransport:
    transport = InProcessTransport()
    transport.attach(_worker(world, launch, transport, interrupts))
    return transport


def _follow(world: World, early: Interrupts) -> int:
    """Be a worker until told to stop; a worker whose master is lost ends by itself."""
    port = MPIWorker(world)
    launch = port.launch()
    if launch is None:
        return EXIT_DONE
    port.set_patience(launch.settings.execution.patience_s)
    with Interrupts(launch.settings.execution.signals, early) as interrupts:
        worker: Handler
        try:
            worker = _worker(world, launch, port, interrupts)
        except Exception as error:  # whatever is the matter on this node, the others go on
            worker = UnfitWorker(world.host, error)
        port.serve(worker)
    return EXIT_DONE


def _worker(world: World, launch: Launch, port: InProcessTransport | MPIWorker, interrupts: Interrupts) -> Worker:
    # Imported here: only workers need torch, and it takes seconds and hundreds of megabytes.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads must not spin where ranks share cores
    silence_library_warnings()
    with contextlib.redirect_stdout(io.StringIO()):  # and what they print on being imported
        from driver.engine.memory import default_capacity_atoms
        from driver.stages.dispatch import EngineRunner, visible_gpus

    execution = launch.settings.execution
    device = assign_device(
        execution.device,
        world.local_worker,
        world.local_workers,
        visible_gpus(),
        gpus_expected=job_has_gpus(os.environ),
    )
    runner = EngineRunner(device, assign_threads(execution.threads, world.core_sharers), launch.settings)
    capacity = execution.capacity_atoms or default_capacity_atoms(device)
    identity = WorkerIdentity(world.rank, world.host, device, capacity, fixed=execution.capacity_atoms is not None)
    return Worker(identity, launch.models, runner, port.pending, interrupts, execution.grace_s)


def software_versions() -> dict[str, str]:
    """Return the versions of what results depend on; packages that are not installed are left out."""
    versions = {"latdyn": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _described(counts: Counts, campaign: Campaign) -> str:
    text = f"{counts.done} of {counts.total} tasks done"
    if counts.quarantined:
        text += f", {counts.quarantined} quarantined (give them another try with retry=failed)"
    if counts.blocked:
        text += f", {counts.blocked} not run because they build on a quarantined one"
    if campaign.materials.refused:
        text += f", {len(campaign.materials.refused)} materials refused"
    return text


def _report(summary: Summary, campaign: Campaign) -> None:
    name = campaign.configuration.settings.name
    if summary.interrupted_by:
        text = (
            f"{summary.interrupted_by}: interrupted with {summary.counts.left} tasks left; run the same command again"
        )
    else:
        text = f"finished in {duration(summary.seconds)}"
    line = f"{name}: {text}; {_described(summary.counts, campaign)}; archive {campaign.archive}"
    log.info(line)
    if sys.stderr.isatty():  # elsewhere the log goes to the screen as well
        print(line, flush=True)


def _exit_code(summary: Summary, campaign: Campaign) -> int:
    if summary.interrupted_by:
        return EXIT_INTERRUPTED
    failed = summary.counts.quarantined > 0 or bool(campaign.materials.refused)
    return EXIT_QUARANTINED if failed else EXIT_DONE


def exit_code_of(error: Exception) -> int:
    """Exit code for an error that ended a run: a full or broken disk is worth submitting again, wrong usage is not."""
    return EXIT_INTERRUPTED if isinstance(error, StorageError | InterruptedRunError) else EXIT_USAGE
