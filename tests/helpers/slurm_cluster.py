"""A Slurm of its own on this machine: a controller and nodes with GPUs that are only device files, in one folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel", "squeue", "sinfo")
_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"

_CONF = """\
ClusterName=latdyn
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5,batch_sched_delay=0
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=10
TmpFS={folder}/tmp-%n
MinJobAge=300
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
{nodes}
PartitionName=all Nodes=ALL Default=YES MaxTime=60 State=UP
"""


class NoSlurmError(Exception):
    """Slurm cannot be run on this machine; the message says why."""


@dataclass
class SlurmCluster:
    """Starts and stops munged, slurmctld and one slurmd per node, all on loopback.

    Several nodes on one machine need a slurmd that was built for it, as Debian's is.

    Attributes
    ----------
    folder : Path
        For sockets, logs, state and device files; short, because it holds a socket.
    nodes, cpus, gpus : int
        Nodes, and what each pretends to have.
    """

    folder: Path
    nodes: int = 3
    cpus: int = 8
    gpus: int = 4
    environment: dict[str, str] = field(default_factory=dict)
    _daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start everything and wait until all nodes are idle.

        Raises
        ------
        NoSlurmError
            If programs or privileges are missing, or a daemon does not start; with the end of its log.
        """
        if os.getuid() != 0:
            raise NoSlurmError("starting a Slurm needs root")
        missing = [program for program in _PROGRAMS if shutil.which(program, path=_PATH) is None]
        if missing:
            raise NoSlurmError(f"Slurm is not installed (no {', '.join(missing)}); run tests/slurm/install.sh")
        self._write_configuration()
        self._make_gpus()
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        self.environment |= {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _PATH}
        self._launch("munged", "--foreground", "--force", *self._munge_options())
        self._wait_for((self.folder / "munge.socket").exists, "munge.log", 10)
        self._launch("slurmctld", "-D")
        for node in self.names:
            self._launch("slurmd", "-D", "-N", node, PMIX_HOSTNAME=node)  # PMIx goes by host, Slurm by node
        self._wait_for(lambda: self._idle() == self.nodes, "slurmctld.log", 60)

    def stop(self) -> None:
        """End all jobs and daemons, and remove the device files."""
        with contextlib.suppress(subprocess.SubprocessError, OSError):
            self.command("scancel", "--user=root", timeout_s=10)
            self.wait(lambda: not self.command("squeue", "-h").stdout, 20)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()
        for i in range(self.gpus):
            (self.folder / f"gpu{i}").unlink(missing_ok=True)

    @property
    def names(self) -> list[str]:
        """Names of the nodes."""
        return [f"n{i + 1}" for i in range(self.nodes)]

    def command(
        self, *words: str, timeout_s: float = 30, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a Slurm command to its end, killing it after `timeout_s`; nothing is raised for its exit code."""
        return subprocess.run(
            words, env=self.environment | environment, cwd=cwd, capture_output=True, text=True, timeout=timeout_s
        )

    def submit(self, script: Path, *, options: Sequence[str], arguments: Sequence[str], cwd: Path, **env: str) -> str:
        """Submit a batch job; return its number."""
        done = self.command("sbatch", "--parsable", *options, str(script), *arguments, cwd=cwd, **env)
        if done.returncode != 0:
            raise RuntimeError(f"sbatch failed: {done.stderr}")
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what `scontrol show job` says of a job, by field."""
        words = self.command("scontrol", "--oneliner", "show", "job", number).stdout.split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Ask again and again; return whether the condition came true in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    def _launch(self, *words: str, **environment: str) -> None:
        with (self.folder / f"{words[0]}.out").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    words, env=self.environment | environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            )

    def _wait_for(self, condition: Callable[[], bool], log: str, timeout_s: float) -> None:
        def over() -> bool:
            return condition() or any(daemon.poll() is not None for daemon in self._daemons)

        if not self.wait(over, timeout_s) or not condition():
            files = [*sorted(self.folder.glob("*.out")), self.folder / log]
            ends = [f"{path.name}: {path.read_text()[-500:]}" for path in files if path.exists()]
            self.stop()
            raise NoSlurmError("Slurm does not start here; " + " | ".join(ends))

    def _idle(self) -> int:
        states = self.command("sinfo", "-h", "-N", "-o", "%T").stdout.split()
        return states.count("idle")

    def _munge_options(self) -> list[str]:
        files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
        files["seed-file"] = "munge.seed"
        return [f"--{option}={self.folder / name}" for option, name in files.items()]

    def _write_configuration(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("state", *(f"tmp-{node}" for node in self.names)):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        host = socket.gethostname().partition(".")[0]
        ports = _free_ports(1 + self.nodes)
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
            f"Gres=gpu:{self.gpus} State=UNKNOWN"
            for name, port in zip(self.names, ports[1:], strict=True)
        )
        (self.folder / "slurm.conf").write_text(
            _CONF.format(host=host, ports=ports, folder=self.folder, nodes=nodes), encoding="utf-8"
        )
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-{self.gpus - 1}]\n")

    def _make_gpus(self) -> None:
        for i in range(self.gpus):
            try:
                os.mknod(self.folder / f"gpu{i}", 0o020600, os.makedev(195, i))
            except OSError as error:
                raise NoSlurmError(f"device files cannot be made here ({error.strerror})") from error


def mpich_environment(folder: Path) -> dict[str, str]:
    """Environment that makes mpi4py load MPICH, by way of a link in a folder; empty where there is none."""
    found = sorted(Path("/usr/lib").glob("*/libmpich.so.12"))
    if not found:
        return {}
    (folder / "libmpi.so.12").symlink_to(found[0])  # Debian's has another name than mpi4py looks for
    return {"LD_LIBRARY_PATH": str(folder), "MPI4PY_LIBMPI": str(folder / "libmpi.so.12")}


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]
    finally:
        for s in sockets:
            s.close()
