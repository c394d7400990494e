#!/usr/bin/env bash
# Sets everything up on a fresh machine, then lint, types and tests. Arguments go to pytest instead of the whole suite.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. jobs/environment.sh
make_environment .venv run,mpi,test,fast
make_environment .venv-analysis "" # the bare install: no torch, MACE, MPI or Hydra

python=.venv/bin/python
# Compiled models: one folder for all tests, which share it as ranks do.
LATDYN_CACHE=$(mktemp -d)
trap 'rm -rf "$LATDYN_CACHE"' EXIT
export LATDYN_CACHE OMP_NUM_THREADS=1 PATH="$PWD/.venv/bin:$PATH" LATDYN_BARE_PYTHON="$PWD/.venv-analysis/bin/python"

if [ $# -gt 0 ]; then
    $python -m pytest "$@"
    exit
fi

echo "== lint"
$python -m ruff format --check .
$python -m ruff check .
echo "== types"
$python -m mypy
echo "== tests"
if ! bash tests/slurm/install.sh; then
    echo "Slurm cannot be installed here: its tests will be skipped"
fi
$python -m pytest -n "$(env -u OMP_NUM_THREADS nproc)" --dist loadgroup -m "not slurm and not mpi"
$python -m pytest -m mpi
$python -m pytest -m slurm
