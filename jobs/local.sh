#!/usr/bin/env bash
# Quick start on one machine: sets everything up, runs a campaign on MPI and writes its report.
#
#   bash jobs/local.sh                                     campaign `demo`
#   bash jobs/local.sh campaign=smoke name=mine            any overrides of `python -m driver run`
#   WORKERS=8 bash jobs/local.sh ...                       ranks that compute (default: one per core)
#
# Interrupt it (Ctrl-C) and run it again: it goes on where it was.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
. jobs/environment.sh
make_environment .venv run,mpi,fast || exit 2

workers=${WORKERS:-$(env -u OMP_NUM_THREADS nproc)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# With fault tolerance (ULFM) the campaign goes on when a worker dies.
launch=(.venv/bin/mpirun --with-ft ulfm --bind-to none --oversubscribe -n $((1 + workers)))
[ "$(id -u)" = 0 ] && launch+=(--allow-run-as-root)

# mpirun answers SIGINT and SIGTERM by killing its ranks at once, but passes SIGUSR1 on: with that they finish what they
# have begun. In a session of its own it does not see the terminal's Ctrl-C.
setsid "${launch[@]}" .venv/bin/python -m driver run "$@" &
mpirun=$!
interrupted=
trap 'interrupted=1; kill -USR1 $mpirun 2>/dev/null' INT TERM USR1
while :; do
    interrupted=
    wait $mpirun
    code=$?
    [ -z "$interrupted" ] && break # else a signal ended the wait, not the run
done
trap - INT TERM USR1
[ "$code" -gt 1 ] && exit "$code"

archive=$(.venv/bin/python -m driver plan --archive "$@") || exit $?
report=$(dirname "$archive")/report
.venv/bin/python -m analysis report "$archive" -o "$report" || exit $?
exit "$code"
