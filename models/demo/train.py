"""Train the demo model on the teacher's labels with mace_run_train, on one CPU thread, and write demo.model.

Training runs in FOLDER/training, in cycles of a decaying learning rate. The same command continues an interrupted
training from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Cycle:
    """Epochs before `end_epoch`; the learning rate starts at `lr` and is multiplied by `decay` after each."""

    end_epoch: int
    lr: float
    decay: float


CYCLES = (Cycle(37, 0.01, 0.92), Cycle(51, 0.005, 0.80))

ARCHITECTURE: Mapping[str, str | int | float] = {
    "model": "MACE",
    "num_interactions": 2,
    "correlation": 3,
    "max_ell": 3,
    "hidden_irreps": "16x0e",
    "r_max": 5.5,
    "num_radial_basis": 8,
    "radial_MLP": "[32,32]",
    "MLP_irreps": "16x0e",
    "E0s": "average",
    "scaling": "rms_forces_scaling",
}

OPTIMISATION: Mapping[str, str | int | float | bool] = {
    "loss": "universal",
    "huber_delta": 0.01,
    "energy_weight": 10,
    "forces_weight": 20,
    "stress_weight": 5000,
    "compute_stress": True,
    "batch_size": 4,
    "valid_batch_size": 8,
    "scheduler": "ExponentialLR",
    "ema": True,
    "ema_decay": 0.995,
    "amsgrad": True,
    "clip_grad": 10,
    "eval_interval": 2,
    "default_dtype": "float32",
    "device": "cpu",
    "seed": 2026,
}


def training_command(data: Path, cycle: Cycle) -> list[str]:
    """Return the command line that trains on the data sets in the folder `data` to the end of `cycle`."""
    settings = {
        "name": "demo",
        "train_file": data / "train.extxyz",
        "valid_file": data / "valid.extxyz",
        "max_num_epochs": cycle.end_epoch,
        "lr": cycle.lr,
        "lr_scheduler_gamma": cycle.decay,
        **ARCHITECTURE,
        **OPTIMISATION,
    }
    # A flag of argparse takes no value; compute_stress takes one.
    flags = {"ema", "amsgrad"}
    options = [f"--{key}" if key in flags else f"--{key}={value}" for key, value in settings.items()]
    return ["mace_run_train", *options, "--restart_latest", "--num_workers=0"]


def last_checkpoint(training: Path) -> Path | None:
    """Return the newest checkpoint of the folder `training`, or None."""
    return max((training / "checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime, default=None)


def remaining_cycles(training: Path) -> tuple[Cycle, ...]:
    """Return the cycles from that of the last checkpoint on; a checkpoint knows its cycle by the decay."""
    checkpoint = last_checkpoint(training)
    if checkpoint is None:
        return CYCLES
    decay = torch.load(checkpoint, map_location="cpu", weights_only=False)["lr_scheduler"]["gamma"]
    return CYCLES[[cycle.decay for cycle in CYCLES].index(decay) :]


def begin_cycle(training: Path, cycle: Cycle) -> None:
    """Give the last checkpoint the learning rate of `cycle` and a fresh optimiser, unless it belongs to it already.

    mace_run_train has no option for this: it takes rate, decay and the optimiser's moments from the checkpoint.
    """
    checkpoint = last_checkpoint(training)
    if checkpoint is None:
        return
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)
    if state["lr_scheduler"]["gamma"] == cycle.decay:
        return
    state["optimizer"]["state"] = {}
    for group in state["optimizer"]["param_groups"]:
        group["lr"] = cycle.lr
    state["lr_scheduler"]["gamma"] = cycle.decay
    torch.save(state, checkpoint)


def install_model(trained: Path, folder: Path) -> None:
    """Copy the trained model to `folder` as demo.model, and write its sha256 beside it."""
    target = folder / "demo.model"
    shutil.copyfile(trained, target)
    digest = hashlib.sha256(target.read_bytes()).hexdigest()
    (folder / "demo.model.sha256").write_text(f"{digest}  demo.model\n")


def main() -> None:
    """Train, then copy the model to the output folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder that make_training_set.py wrote")
    parser.add_argument("--output", type=Path, help="where demo.model goes (default: FOLDER)")
    arguments = parser.parse_args()
    data = arguments.folder.resolve()
    training = data / "training"
    training.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for cycle in remaining_cycles(training):
        begin_cycle(training, cycle)
        subprocess.run(training_command(data, cycle), cwd=training, env=environment, check=True)
    install_model(training / "demo.model", arguments.output or data)


if __name__ == "__main__":
    main()
