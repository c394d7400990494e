"""Command line of the analysis: metrics, compare, report, export."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from driver.archive.paths import user_path

if TYPE_CHECKING:
    from rich.console import Console

    from analysis.reduce import Reduction

EXIT_DONE, EXIT_DAMAGED, EXIT_USAGE, EXIT_INTERNAL, EXIT_INTERRUPTED = 0, 1, 2, 70, 75

_EXIT_CODES = """\
Exit codes: 0 done; 1 done, but something in the archive is damaged and was left out; 2 wrong usage or input, or an
output that must not or cannot be written; 70 internal error; 75 ended by Ctrl-C or a full disk, what stood at the
output before is unchanged: the same command begins anew.
"""

_OUTPUTS = """\
An output is replaced if it is, as it stands, an earlier output of Latdyn; other files only with --overwrite. Archives
and campaigns' files are never replaced.
"""

_SHOWN_DAMAGE = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    pressed: list[int] = []
    try:
        with _ctrl_c_noted(pressed):
            options = _parser().parse_args(given)
            command: Callable[[argparse.Namespace], int] = options.command
            return command(options)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has read enough
        return EXIT_DONE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        return _told(KeyboardInterrupt() if pressed else error)


@contextlib.contextmanager
def _ctrl_c_noted(pressed: list[int]) -> Iterator[None]:
    """Note in a list that Ctrl-C was pressed: libraries that are being imported turn it into errors of their own."""

    def handle(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not in the main thread, where there is no Ctrl-C
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _told(error: BaseException) -> int:
    """Say in one line what has ended the command; return the exit code."""
    from driver.archive.records import ArchiveError, StorageError
    from driver.errors import LatdynError

    if isinstance(error, KeyboardInterrupt):
        text, code = "ended by Ctrl-C; every output is whole, or as it was before", EXIT_INTERRUPTED
    elif isinstance(error, StorageError):
        text, code = str(error), EXIT_INTERRUPTED
    elif isinstance(error, LatdynError | ArchiveError):
        text, code = str(error), EXIT_USAGE
    elif isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename else ""
        text, code = f"{named}{error.strerror}", EXIT_USAGE
    else:
        text, code = f"internal error, {type(error).__name__}: {error}; --debug shows where", EXIT_INTERNAL
    print("latdyn: " + " ".join(text.split()), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    from analysis.export import FORMATS
    from analysis.reference import KINDS
    from driver.library_warnings import silence_library_warnings

    silence_library_warnings()
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Reduce a Latdyn archive.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    metrics = _command(commands, "metrics", _metrics, "one row of metrics for each material and model")
    metrics.add_argument("-o", "--output", type=user_path, metavar="FILE", help="CSV file to write")
    _reduction_options(metrics)

    comparison = _command(commands, "compare", _compare, "sigma against a reference at the same temperature")
    comparison.add_argument(
        "--reference",
        required=True,
        metavar="MODEL|FILE",
        help="a model of the archive, or a table with the columns formula and, say, sigma_300K, separated by commas, "
        "semicolons or tabs",
    )
    comparison.add_argument(
        "--reference-kind",
        choices=tuple(KINDS),
        help="which published table the file is, for its caveats; a whole one is recognised ("
        + "; ".join(f"{name}: {kind.citation}" for name, kind in KINDS.items())
        + ")",
    )
    comparison.add_argument(
        "--reference-temperature", type=float, metavar="K", help="of a column that is called sigma alone"
    )
    comparison.add_argument("-o", "--output", type=user_path, required=True, metavar="DIR", help="folder to write")
    _reduction_options(comparison)

    report = _command(commands, "report", _report, "a self-contained HTML page with tables and figures")
    report.add_argument("-o", "--output", type=user_path, required=True, metavar="DIR", help="folder to write")
    _reduction_options(report)

    exported = _command(commands, "export", _export, "what other tools open, as single files")
    exported.add_argument("--material", required=True, metavar="KEY")
    exported.add_argument("--model", required=True, metavar="KEY")
    exported.add_argument(
        "--to", required=True, choices=FORMATS, help="; ".join(f"{k}: {v}" for k, v in FORMATS.items())
    )
    exported.add_argument("-o", "--output", type=user_path, required=True, metavar="PATH", help="file or folder")
    exported.add_argument("--distance", type=float, metavar="A", help="phonopy: which displacements, in angstrom")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    function: Callable[[argparse.Namespace], int],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.\n\n{_OUTPUTS}",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    parser.add_argument("archive", type=user_path, metavar="ARCHIVE")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files that Latdyn did not write, or that have been changed since",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _reduction_options(parser: argparse.ArgumentParser) -> None:
    from analysis.settings import AnalysisSettings

    defaults = AnalysisSettings()
    group = parser.add_argument_group("reduction (where no default is given: as the campaign was configured)")
    group.add_argument(
        "--equilibration", type=float, metavar="PS", help="drop this much of each trajectory's beginning"
    )
    group.add_argument("--sigma-distance", type=float, metavar="A", help="displacements that sigma is reduced from")
    group.add_argument("--bands-distance", type=float, metavar="A", help="displacements that phonons are reduced from")
    group.add_argument(
        "--tolerance",
        type=float,
        default=defaults.tolerance_THz,
        metavar="THZ",
        help="a mode below this signed frequency is imaginary (default: %(default)s)",
    )
    group.add_argument(
        "--mesh-length",
        type=float,
        default=defaults.mesh_length_A,
        metavar="A",
        help="density of the mesh of q points (default: %(default)s)",
    )
    parser.add_argument("--processes", type=_processes, default=1, metavar="N", help="work in parallel (default: 1)")


def _processes(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _reduced(options: argparse.Namespace, *, details: bool = False) -> Reduction:
    from analysis.reduce import reduce_archive
    from analysis.settings import AnalysisSettings

    settings = AnalysisSettings(
        sigma_distance_A=options.sigma_distance,
        bands_distance_A=options.bands_distance,
        equilibration_ps=options.equilibration,
        tolerance_THz=options.tolerance,
        mesh_length_A=options.mesh_length,
    )
    return reduce_archive(options.archive, settings, processes=options.processes, details=details)


def _metrics(options: argparse.Namespace) -> int:
    from analysis.columns import is_metrics_file
    from analysis.tables import metrics_table
    from driver.archive.outputs import OutputFile

    output = options.output and OutputFile(options.output, is_metrics_file, options.overwrite, (options.archive,))
    reduction = _reduced(options)
    if output:
        with output.writing() as path:
            reduction.table.to_csv(path, index=False)
    _console().print(metrics_table(reduction.table))
    return _exit_code(options.archive, reduction)


def _compare(options: argparse.Namespace) -> int:
    from analysis.compare import compare, write_comparison
    from analysis.reference import from_model, is_model, read_reference
    from analysis.settings import campaign_settings
    from analysis.tables import comparison_table
    from driver.archive.outputs import OutputFolder
    from driver.archive.reader import open_archive

    output = OutputFolder(options.output, "comparison", options.overwrite, (options.archive,))
    with open_archive(options.archive) as view:
        temperature_K = campaign_settings(view.header).temperature_K
        reference = None
        if not is_model(options.reference, list(view.models())):
            reference = read_reference(
                Path(options.reference),
                wanted_K=temperature_K,
                stated_K=options.reference_temperature,
                kind=options.reference_kind,
            )
    reduction = _reduced(options)
    reference = reference or from_model(reduction.table, options.reference, temperature_K)
    comparisons = compare(reduction.table, reference, temperature_K)
    with output.writing() as folder:
        write_comparison(comparisons, reference, folder)
    console = _console()
    console.print(comparison_table(comparisons, reference))
    for comparison in comparisons:
        if comparison.excluded:
            console.print(f"{comparison.model}: {len(comparison.excluded)} materials not compared (see summary.md)")
    for caveat in reference.caveats:
        console.print(f"Note: {caveat}")
    return _exit_code(options.archive, reduction)


def _report(options: argparse.Namespace) -> int:
    from analysis.report import write_report
    from analysis.tables import metrics_table
    from driver.archive.outputs import OutputFolder

    output = OutputFolder(options.output, "report", options.overwrite, (options.archive,))
    reduction = _reduced(options, details=True)
    with output.writing() as folder:
        page = write_report(options.archive, reduction, folder)
    console = _console()
    console.print(metrics_table(reduction.table))
    console.print(f"Report: {options.output / page.name}", soft_wrap=True, highlight=False)
    return _exit_code(options.archive, reduction)


def _export(options: argparse.Namespace) -> int:
    from analysis.export import export

    written: Iterable[Path] = export(
        options.archive,
        options.material,
        options.model,
        options.to,
        options.output,
        distance_A=options.distance,
        overwrite=options.overwrite,
    )
    for path in written:
        print(path)
    return EXIT_DONE


def _exit_code(archive: Path, reduction: Reduction) -> int:
    """Name what is damaged; return the exit code that says whether anything is."""
    for finding in reduction.damage[:_SHOWN_DAMAGE]:
        print(f"latdyn: damaged, and left out: {finding}", file=sys.stderr)
    if not reduction.damage:
        return EXIT_DONE
    more = len(reduction.damage) - _SHOWN_DAMAGE
    further = f" in {more} further places" if more > 0 else ""
    mended = "`python -m driver verify --drop` gives that up, and the next run does it again"
    print(f"latdyn: {archive} is damaged{further}; {mended}", file=sys.stderr)
    return EXIT_DAMAGED


def _console() -> Console:
    """A console that does not squeeze a table into 80 columns when its output goes to a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


if __name__ == "__main__":
    sys.exit(main())
