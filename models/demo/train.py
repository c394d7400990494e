"""Train the demo model on the teacher's labels with mace_run_train, on one CPU thread, and write demo.model.

Training runs in FOLDER/training. The same command continues an interrupted training from its last checkpoint.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

EPOCHS = 48

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
    "lr": 0.01,
    "scheduler": "ExponentialLR",
    "lr_scheduler_gamma": 0.92,
    "ema": True,
    "ema_decay": 0.995,
    "amsgrad": True,
    "clip_grad": 10,
    "eval_interval": 2,
    "default_dtype": "float32",
    "device": "cpu",
    "seed": 2026,
}


def training_command(data: Path, epochs: int) -> list[str]:
    """Return the mace_run_train command line for the data sets in the folder `data`."""
    settings = {
        "name": "demo",
        "train_file": data / "train.extxyz",
        "valid_file": data / "valid.extxyz",
        "max_num_epochs": epochs,
        **ARCHITECTURE,
        **OPTIMISATION,
    }
    # A flag of argparse takes no value; compute_stress takes one.
    flags = {"ema", "amsgrad"}
    options = [f"--{key}" if key in flags else f"--{key}={value}" for key, value in settings.items()]
    return ["mace_run_train", *options, "--restart_latest", "--num_workers=0"]


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
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs in all (default: %(default)s)")
    arguments = parser.parse_args()
    data = arguments.folder.resolve()
    training = data / "training"
    training.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(training_command(data, arguments.epochs), cwd=training, env=environment, check=True)
    install_model(training / "demo.model", arguments.output or data)


if __name__ == "__main__":
    main()
