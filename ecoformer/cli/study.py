"""Run, resume or report a whole table: every row's training, conversion, evaluation, energy and speed.

    ecoformer study cifar10_long --data DIR           runs what is missing, then reports
    ecoformer study cifar10_long --report             reports what is there
    ecoformer study imagenet --data DIR --launch "torchrun --nproc-per-node 8"
    ecoformer study my_study.yaml --data DIR          rows of your own
    ecoformer study energy                            the published energies; needs no data

The rows stand in configs/study/TABLE.yaml. Each is a train.py command that --dry-run prints; one that was interrupted
goes on where it was, today or in a week. On a CPU as many runs as cores go side by side and share them. The report is
table.json, .md, .csv, .tex and plots in --out.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from ecoformer.cli.arguments import Parser, out_folder, positive, script
from ecoformer.config.loading import CONFIGS
from ecoformer.errors import InputError, counted
from ecoformer.files import require_writable

if TYPE_CHECKING:
    from ecoformer.lab.study.plan import Job

TABLES = [*sorted(path.stem for path in (CONFIGS / "study").glob("*.yaml")), "energy"]


@script(__name__, __doc__, resumable=True)
def main(p: Parser) -> None:
    p.add_argument(
        "words", nargs="*", metavar="TABLE key=value", help=f"{', '.join(TABLES)} or a file; settings for every run"
    )
    p.add_argument("--table", help="the same as TABLE")
    p.add_argument("--data", metavar="DIR", help="data.root of every run")
    p.add_argument("--out", type=out_folder, help="folder of runs and report (default: outputs/study/TABLE)")
    p.add_argument("--report", action="store_true", help="run nothing")
    p.add_argument("--dry-run", action="store_true", help="print every run's command, state and predicted energy")
    p.add_argument(
        "--only", action="append", metavar="PATTERN", help="runs to start, e.g. 'vit/*' or '*/seed0'; may be repeated"
    )
    p.add_argument("--launch", default="python", metavar="COMMAND", help='e.g. "torchrun --nproc-per-node 8"')
    p.add_argument(
        "--jobs", type=positive, metavar="N", help="runs side by side (default: on a CPU one a core, else 1)"
    )
    p.add_argument("--speed", action="store_true", help="measure images/s of all models in turns (an idle machine)")
    p.add_argument("--threads", type=positive, help="CPU threads of the speed measurement")


def run(args: argparse.Namespace) -> int:
    table, overrides = _table(args)
    out: Path = args.out or Path("outputs/study") / Path(table).stem
    if not args.dry_run:
        require_writable(out, str(out), folder=True)
    if table == "energy":
        from ecoformer.lab.study.reports import report_energy

        return report_energy(out)
    # Imported late: --help should not wait for torch.
    from ecoformer.lab.study.plan import jobs, load_study
    from ecoformer.lab.study.remaining import what_is_left
    from ecoformer.lab.study.reports import report
    from ecoformer.lab.study.runner import run_jobs
    from ecoformer.run.process import module

    study = load_study(CONFIGS / "study" / f"{table}.yaml" if table in TABLES else Path(table))
    patterns = args.only or ["*"]
    parallel, how = side_by_side(args.jobs, args.launch, overrides, len(with_their_sources(jobs(study, out), patterns)))
    planned = jobs(study, out, [*([f"data.root={args.data}"] if args.data else []), *how, *overrides])
    chosen = with_their_sources(planned, patterns)
    if args.dry_run:
        dry_run(chosen, args.launch)
    if args.dry_run or not args.report:
        print(f"{counted(len(chosen), 'run')} of {len(planned)}, {what_is_left(chosen, parallel)}; {out}", flush=True)
    if args.dry_run:
        return 0
    failed: list[Job] = []
    if not args.report:
        from ecoformer.lab.study.prediction import predictions, require_possible

        require_possible(predictions(job for job in chosen if not job.is_finished))
        failed = run_jobs(chosen, module("train"), args.launch, lambda line: print(line, flush=True), parallel)
    if failed and not any(job.is_finished for job in planned if job.row is not None):
        raise InputError(f"no row of {table} is finished: the runs that failed are listed above, with their reasons")
    if args.speed:
        import torch

        from ecoformer.lab.study.speed import write_speed

        if args.threads is not None:
            torch.set_num_threads(args.threads)
        write_speed(study, planned, out)
    print(report(study, planned, out))
    unfinished = [job.id for job in planned if not job.is_finished]
    if unfinished:
        print(f"not finished: {', '.join(unfinished)}")
    return 1 if failed else 0


def _table(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The table, a name or a file's path, and the overrides. Raises InputError where there is none of that name."""
    table, *overrides = [*([args.table] if args.table else []), *args.words] or [""]
    if table not in TABLES and not table.endswith((".yaml", ".yml")):
        what = f"{table!r} is no table" if table else "no table is named"
        raise InputError(f"{what}: give {', '.join(TABLES)}, or a .yaml file of your own")
    return table, overrides


def side_by_side(asked: int | None, launch: str, overrides: list[str], runs: int) -> tuple[int, list[str]]:
    """How many of `runs` go at a time, and the settings with which they share a CPU's cores; overrides prevail."""
    import torch

    from ecoformer.run.process import available_cores

    device = dict(text.split("=", 1) for text in overrides if "=" in text).get("device", "auto")
    # A GPU may be elsewhere: a table can be planned and reported without one.
    if launch != "python" or not (device == "cpu" or (device == "auto" and not torch.cuda.is_available())):
        return asked or 1, []
    parallel = asked or min(available_cores(), runs)
    threads = max(1, available_cores() // parallel)
    return parallel, [f"threads={threads}", "data.num_workers=0"] if parallel > 1 else []


def with_their_sources(planned: list[Job], patterns: list[str]) -> list[Job]:
    """The jobs whose id matches, and those they start from. Raises InputError if a pattern matches none."""
    wanted: set[str] = set()
    for pattern in patterns:
        matching = {job.id for job in planned if fnmatchcase(job.id, pattern)}
        if not matching:
            raise InputError(f"--only {pattern!r} matches no run: there are {planned[0].id}, {planned[-1].id}, ...")
        wanted |= matching
    needed = wanted | {job.needs for job in planned if job.id in wanted}
    return [job for job in planned if job.id in needed]


def dry_run(planned: list[Job], launch: str) -> None:
    """Every run with its state, its command and the energy that the ledger predicts for it."""
    from ecoformer.energy.summary import in_attention
    from ecoformer.files.table import energy_text
    from ecoformer.lab.study.prediction import predictions, require_possible
    from ecoformer.lab.study.runner import other_settings

    found = []
    for job, figures in predictions(planned):
        found.append((job, figures))
        state = "finished" if job.is_finished else "to do"
        if job.is_finished and (others := other_settings(job)):
            state += f" ({', '.join(others)})"
        if isinstance(figures, InputError):
            cost = f"refused: {figures}"
        else:
            one = "an image" if figures["seq_len"] is None else "a sample"
            cost = f"{energy_text(figures['energy_pj'])} {one}, {in_attention(figures['attention_energy_pj'])}"
        print(f"{job.id}: {state}, {cost}\n    {job.command(launch)}")
    require_possible(found)
