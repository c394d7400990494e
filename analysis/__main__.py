"""Command line of the analysis: metrics, compare, report, export. Exit codes: 0 done, 2 wrong usage or input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from analysis.compare import compare, write_comparison
from analysis.export import FORMATS, export
from analysis.reduce import Reduction, reduce_archive
from analysis.reference import from_model, reference_file
from analysis.report import write_report
from analysis.settings import AnalysisSettings
from analysis.tables import comparison_table, metrics_table
from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError
from driver.errors import LatdynError

DEFAULTS = AnalysisSettings()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except (LatdynError, ArchiveError, OSError) as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Reduce a Latdyn archive.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    metrics = _command(commands, "metrics", _metrics, "one row of metrics for each material and model")
    metrics.add_argument("-o", "--output", type=Path, metavar="FILE", help="CSV file to write")
    _reduction_options(metrics)

    comparison = _command(commands, "compare", _compare, "sigma(300 K) against a reference")
    comparison.add_argument(
        "--reference",
        required=True,
        metavar="MODEL|FILE",
        help="a model of the archive, or a CSV file with the columns formula and sigma_300K",
    )
    comparison.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    _reduction_options(comparison)

    report = _command(commands, "report", _report, "a self-contained HTML page with tables and figures")
    report.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    _reduction_options(report)

    exported = _command(commands, "export", _export, "what other tools open, as single files")
    exported.add_argument("--material", required=True, metavar="KEY")
    exported.add_argument("--model", required=True, metavar="KEY")
    exported.add_argument(
        "--to", required=True, choices=FORMATS, help="; ".join(f"{k}: {v}" for k, v in FORMATS.items())
    )
    exported.add_argument("-o", "--output", type=Path, required=True, metavar="PATH")
    exported.add_argument("--distance", type=float, metavar="A", help="phonopy: which displacements, in angstrom")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, function: object, summary: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(command=function)
    parser.add_argument("archive", type=Path, metavar="ARCHIVE")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _reduction_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("reduction (where no default is given: as the campaign was configured)")
    group.add_argument(
        "--equilibration", type=float, metavar="PS", help="drop this much of each trajectory's beginning"
    )
    group.add_argument("--sigma-distance", type=float, metavar="A", help="displacements that sigma is reduced from")
    group.add_argument("--bands-distance", type=float, metavar="A", help="displacements that phonons are reduced from")
    group.add_argument(
        "--tolerance",
        type=float,
        default=DEFAULTS.tolerance_THz,
        metavar="THZ",
        help="a mode below this signed frequency is imaginary (default: %(default)s)",
    )
    group.add_argument(
        "--mesh-length",
        type=float,
        default=DEFAULTS.mesh_length_A,
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
    settings = AnalysisSettings(
        sigma_distance_A=options.sigma_distance,
        bands_distance_A=options.bands_distance,
        equilibration_ps=options.equilibration,
        tolerance_THz=options.tolerance,
        mesh_length_A=options.mesh_length,
    )
    return reduce_archive(options.archive, settings, processes=options.processes, details=details)


def _metrics(options: argparse.Namespace) -> None:
    reduction = _reduced(options)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        reduction.table.to_csv(options.output, index=False)
    _console().print(metrics_table(reduction.table))


def _compare(options: argparse.Namespace) -> None:
    with open_archive(options.archive) as view:
        reference = reference_file(options.reference, list(view.models()))
    reduction = _reduced(options)
    reference = reference or from_model(reduction.table, options.reference)
    comparisons = compare(reduction.table, reference, reduction.campaign.temperature_K)
    write_comparison(comparisons, reference, options.output)
    console = _console()
    console.print(comparison_table(comparisons, reference))
    for comparison in comparisons:
        if comparison.excluded:
            console.print(f"{comparison.model}: {len(comparison.excluded)} materials not compared (see summary.md)")
    for caveat in reference.caveats:
        console.print(f"Note: {caveat}")


def _report(options: argparse.Namespace) -> None:
    reduction = _reduced(options, details=True)
    page = write_report(options.archive, reduction, options.output)
    console = _console()
    console.print(metrics_table(reduction.table))
    console.print(f"Report: {page}", soft_wrap=True, highlight=False)


def _export(options: argparse.Namespace) -> None:
    for path in export(
        options.archive, options.material, options.model, options.to, options.output, distance_A=options.distance
    ):
        print(path)


def _console() -> Console:
    """A console that does not squeeze a table into 80 columns when its output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


if __name__ == "__main__":
    sys.exit(main())
