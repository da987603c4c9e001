"""`python -m tracer.plan`: what a plan over many GPUs takes in seconds, memory and dollars.

Prices one plan, or with `--search` every legal plan of so many GPUs and ranks those that fit.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError
from .plan_options import AXES, add_axes, check_options, given_in, options_from_main, parser
from .progress import progress

if TYPE_CHECKING:
    from .report.report import Report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit code 2 for input that cannot be used, said in one line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parser().parse_args(arguments)
        if options.list_clusters:
            from tracer.hardware import cluster_ids, load_cluster

            from .report.terminal import cluster_table

            print(cluster_table([load_cluster(name) for name in cluster_ids()]))
            return 0
        check_options(options, given_in(parser(), arguments))
        run(options, shlex.join(["tracer.plan", *arguments]))
    except UserError as error:
        print(f"tracer.plan: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` closed the pipe: not an error
        sys.stderr.close()
    return 0


def run_from_main(given: argparse.Namespace, names: set[str], command: str) -> None:
    """`run` with the options of the main command, of which `names` were given.

    Raises:
        UserError: options that a plan does not take.
    """
    run(options_from_main(given, names), command)


def run(options: argparse.Namespace, command: str) -> None:
    """Answer what the options ask, which `check_options` let through."""
    from .report.files import check_folder

    out = check_folder(options.out) if options.out is not None else None
    if options.search:
        _search(options, command, out)
    else:
        _price(options, command, out)


def _price(options: argparse.Namespace, command: str, out: Path | None) -> None:
    """One plan, and beside it another where `--compare` names one."""
    from .plan_pricing import check_strict, other_side, price_plan, study_of

    with progress() as say:
        say("tracing and pricing the program of a rank")
        priced = price_plan(options)
        compared = None if options.compare is None else other_side(options)
    step, advice, study = priced.step, priced.advice(), None
    if out is not None or compared is not None or options.strict:
        study = study_of(priced, command, compared, advice)
    if options.strict and study is not None:
        check_strict(study.detail)
    if options.json:
        more: dict[str, object] = {"advice": advice} if advice else {}
        if compared is not None:
            more["compared"] = dict(compared.record)
        print(json.dumps(step.as_dict() | more, indent=1))
    else:
        from .report.plans import render, render_compared

        print(render(step, verbose=options.verbose, advice=advice, money=priced.money))
        if study is not None and compared is not None:
            print(render_compared(study, compared))
    if out is not None and study is not None:
        from .report.plan_report import plan_report

        _write(plan_report(replace(study, placements=priced.placements())), out)


def _search(options: argparse.Namespace, command: str, out: Path | None) -> None:
    from .plan_search import search_plans
    from .report.files import write_whole
    from .report.plans import render_search
    from .report.search_report import search_csv, search_document, search_report

    if options.phase != "training":
        _search_servers(options)
        return
    with progress() as say:
        study = search_plans(options, command, say)
    if options.json:
        print(json.dumps(search_document(study), indent=1))
    else:
        print(render_search(study.found, options.top, verbose=options.verbose))
    if options.csv is not None:  # behind what is printed: a full disk must not lose the search
        write_whole(Path(options.csv), search_csv(study.found))
    if out is not None:
        _write(search_report(study), out)


def _search_servers(options: argparse.Namespace) -> None:
    from .plan_search import search_servers
    from .report.files import write_whole
    from .report.plans import render_server_search
    from .report.search_report import found_document, search_csv

    with progress() as say:
        found = search_servers(options, say)
    if options.json:
        print(json.dumps(found_document(found, options.top), indent=1))
    else:
        print(render_server_search(found, options.top, verbose=options.verbose))
    if options.csv is not None:
        write_whole(Path(options.csv), search_csv(found))


def _write(report: Report, out: Path) -> None:
    from .report import files

    for line in files.write(report, out).lines():
        print(line, file=sys.stderr)


__all__ = ["AXES", "add_axes", "main", "parser", "run", "run_from_main"]

if __name__ == "__main__":
    sys.exit(main())
