"""Command line: run, plan, status, verify, merge, models."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from driver import __version__
from driver.archive.paths import user_path
from driver.archive.records import ArchiveError
from driver.errors import LatdynError
from driver.guard import Guard, launched_as_rank
from driver.interrupts import Interrupts
from driver.library_warnings import silence_library_warnings
from driver.patience import patience_in

EXIT_INTERRUPTED, EXIT_CRASHED = 75, 70

_OVERRIDES = """\
Overrides, after the command, in any number:
  GROUP=PRESET   picks presets:      campaign=smoke  protocol=paper  "model=[mace-mpa-0,mace-omat-0]"
  KEY=VALUE      sets one value:     dynamics.temperature_K=400  supercell.min_length_A=12  name=mine
                 lists in brackets:  "materials.formulas=[Cs2AgBiBr6,Cs2NaInCl6]"  (quoted, for the shell)
  your own:      name=mine materials=structures "materials.structures=[crystals/*.cif]" model=mace-mpa-0
In parallel: mpirun -n 1+WORKERS python -m driver run ... (Open MPI: --oversubscribe for more ranks than cores).
Presets:
{presets}
Every key, with its default, stands in conf/config.yaml and in the presets of its group. Presets of your own: a folder
laid out like conf/, given with --config-dir. The same command resumes an interrupted campaign; a longer
dynamics.production_ps, more materials or more models extend a finished one.
Exit codes: 0 all done; 1 done, with quarantined tasks or refused materials; 2 wrong usage; 75 interrupted, run again.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    options = _parser(sys.argv[1:] if arguments is None else arguments).parse_args(arguments)
    silence_library_warnings()
    try:
        return int(options.command(options))
    except (LatdynError, ArchiveError) as error:
        if options.debug:
            raise
        print(f"latdyn: {error}", file=sys.stderr)
        return _exit_code_of(error)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("latdyn: ended by Ctrl-C", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if options.debug or sys.excepthook is not sys.__excepthook__:  # under MPI the hook ends all ranks
            raise
        print(f"latdyn: {_internal(error)}", file=sys.stderr)
        return EXIT_CRASHED


def _internal(error: Exception) -> str:
    """Describe what is a defect of this program."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"internal error: {what} ({place.filename}:{place.lineno}); please report it with what --debug shows"


def _exit_code_of(error: Exception) -> int:
    from driver.run import exit_code_of

    return exit_code_of(error)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m driver", description="Lattice-dynamics campaigns.")
    parser.add_argument("--version", action="version", version=f"latdyn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    explain = any(a in ("-h", "--help") for a in arguments)
    for name, function, text in (
        ("run", _run, "run or resume a campaign; alone, or under mpirun or srun"),
        ("plan", _plan, "what would run: tasks, atoms, memory, hours, archive size; runs nothing"),
    ):
        command = _add(commands, name, function, text, epilog=_explanation() if explain else None)
        command.add_argument("--config-dir", type=user_path, metavar="DIR", help="folder with presets of your own")
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that differ from the defaults")
        if name == "plan":
            command.add_argument("--archive", action="store_true", help="print only the path of the campaign's archive")
    command = _add(commands, "status", _status, "how far a campaign is")
    command.add_argument("archive", type=user_path)
    form = command.add_mutually_exclusive_group()
    form.add_argument("--watch", action="store_true", help="show it again and again, until interrupted")
    form.add_argument("--done", action="store_true", help="print only the number of tasks done")
    command = _add(commands, "verify", _verify, "recompute every checksum and name what is wrong")
    command.add_argument("archive", type=user_path)
    command.add_argument("--drop", action="store_true", help="give up what is damaged, for the next run to do again")
    command = _add(commands, "merge", _merge, "make one archive of several of the same campaign")
    command.add_argument("archives", type=user_path, nargs="+", metavar="ARCHIVE", help="the first is preferred")
    command.add_argument("-o", "--output", type=user_path, required=True, metavar="ARCHIVE", help="must not exist")
    command = _add(commands, "models", _models, "list, fetch (compute nodes have no internet), trust or prepare models")
    command.add_argument("action", nargs="?", default="list", choices=("list", "fetch", "trust", "prepare"))
    command.add_argument(
        "names", nargs="*", metavar="NAME", help="which to fetch, or to prepare for fast dynamics; trust: files"
    )
    command.add_argument(
        "--accept-licence", action="append", default=[], metavar="LICENCE", help="fetch, trust: agree to it, as ASL"
    )
    command.add_argument("--dtype", default="float32", choices=("float32", "float64"), help="prepare: precision")
    command.add_argument("--cache", metavar="DIR", help="folder of fetched models, instead of $LATDYN_MODELS")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: object,
    text: str,
    epilog: str | None = None,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=text, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--debug", action="store_true", help="tracebacks, and a log of every lease")
    command.set_defaults(command=function)
    return command


def _explanation() -> str:
    from driver.config import presets

    lines = [f"  {group:<10} {', '.join(names)}" for group, names in presets().items()]
    return _OVERRIDES.format(presets="\n".join(lines))


def _run(options: argparse.Namespace) -> int:
    # Before anything that takes time: a rank that is stopped while it loads must not hold the others up.
    # Signals too: launchers send them to ranks that have only begun, and a rank that dies of one looks like a success.
    with Interrupts() as early:
        guard = Guard(patience_in(options.overrides)) if launched_as_rank() else None
        from driver.run import run

        return run(options.overrides, options.config_dir, debug=options.debug, guard=guard, early=early)


def _plan(options: argparse.Namespace) -> int:
    from driver.config import compose
    from driver.plan import print_plan

    if options.archive:
        print(compose(options.overrides, options.config_dir).settings.archive)
        return 0
    return print_plan(options.overrides, options.config_dir)


def _status(options: argparse.Namespace) -> int:
    from driver.status import print_done, print_status

    if options.done:
        return print_done(options.archive)
    return print_status(options.archive, watch=options.watch)


def _verify(options: argparse.Namespace) -> int:
    from driver.maintenance import print_verification

    return print_verification(options.archive, drop=options.drop)


def _merge(options: argparse.Namespace) -> int:
    from driver.maintenance import print_merge

    return print_merge(options.archives, options.output)


def _models(options: argparse.Namespace) -> int:
    from driver.models_command import fetch_models, prepare_models, print_models, trust_models

    if options.action == "prepare":
        return prepare_models(options.names, options.cache, options.dtype)
    if options.action == "list":
        return print_models(options.cache)
    if options.action == "trust":
        return trust_models(options.names, options.accept_licence)
    return fetch_models(options.names, options.cache, options.accept_licence)


if __name__ == "__main__":
    sys.exit(main())
