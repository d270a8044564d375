"""Run, resume or report a whole table: every row's training, conversion, evaluation, energy and speed.

    python scripts/reproduce.py --table cifar10 --data DIR           runs what is missing, then reports
    python scripts/reproduce.py --table cifar10 --report             reports what is there
    python scripts/reproduce.py --table imagenet --data DIR --launch "torchrun --nproc-per-node 8"
    python scripts/reproduce.py --table energy                       the published energies; needs no data

The rows stand in configs/study/TABLE.yaml. Each is a train.py command that --dry-run prints; one that was interrupted
goes on where it was. The report is table.json, .md, .csv, .tex and plots in --out. key=value goes to every run.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ecoformer.cli.arguments import Parser, out_folder, positive, script
from ecoformer.config.loading import CONFIGS
from ecoformer.errors import InputError, counted
from ecoformer.files import require_writable

if TYPE_CHECKING:
    from ecoformer.lab.study.plan import Job

STUDIES = sorted(path.stem for path in (CONFIGS / "study").glob("*.yaml"))


@script(__name__, __doc__, resumable=True)
def main(p: Parser) -> None:
    p.add_argument("--table", required=True, choices=[*STUDIES, "energy"])
    p.add_argument("--data", metavar="DIR", help="data.root of every run")
    p.add_argument("--out", type=out_folder, help="folder of runs and report (default: outputs/study/TABLE)")
    p.add_argument("--report", action="store_true", help="run nothing")
    p.add_argument("--dry-run", action="store_true", help="print every run's command, state and predicted energy")
    p.add_argument(
        "--only", action="append", metavar="PATTERN", help="runs to start, e.g. 'vit/*' or '*/seed0'; may be repeated"
    )
    p.add_argument("--launch", default="python", metavar="COMMAND", help='e.g. "torchrun --nproc-per-node 8"')
    p.add_argument("--jobs", type=positive, default=1, metavar="N", help="runs side by side (on a CPU with threads=1)")
    p.add_argument("--speed", action="store_true", help="measure images/s of all models in turns (an idle machine)")
    p.add_argument("--threads", type=positive, help="CPU threads of the speed measurement")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="settings for every run")


def run(args: argparse.Namespace) -> int:
    out: Path = args.out or Path("outputs/study") / args.table
    if not args.dry_run:
        require_writable(out, str(out), folder=True)
    if args.table == "energy":
        from ecoformer.lab.study.reports import report_energy

        return report_energy(out)
    # Imported late: --help should not wait for torch.
    from ecoformer.lab.study.plan import jobs, load_study
    from ecoformer.lab.study.reports import report
    from ecoformer.lab.study.runner import run_jobs
    from ecoformer.run.process import module

    study = load_study(CONFIGS / "study" / f"{args.table}.yaml")
    common = [*([f"data.root={args.data}"] if args.data else []), *args.overrides]
    planned = jobs(study, out, common)
    chosen = with_their_sources(planned, args.only or ["*"])
    if args.dry_run:
        return dry_run(chosen, args.launch)
    failed: list[Job] = []
    if not args.report:
        waiting = sum(not job.is_finished for job in chosen)
        print(f"{counted(len(chosen), 'run')} of {len(planned)}, {waiting} to do; {out}", flush=True)
        failed = run_jobs(chosen, module("train"), args.launch, lambda line: print(line, flush=True), args.jobs)
    if failed and not any(job.is_finished for job in planned if job.row is not None):
        raise InputError(
            f"no row of {args.table} is finished: the runs that failed are listed above, with their reasons"
        )
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


def dry_run(planned: list[Job], launch: str) -> int:
    """Every run with its state, its command and the energy that the ledger predicts for it."""
    from ecoformer.energy.summary import in_attention
    from ecoformer.files.table import energy_text
    from ecoformer.lab.study.prediction import compose_run, predict_energy
    from ecoformer.lab.study.runner import other_settings

    predicted: dict[tuple[str, ...], dict[str, Any]] = {}
    for job in planned:
        # Neither seeds nor what training starts from change the energy.
        key = tuple(a for a in job.arguments if not a.startswith(("seed=", "output_dir=", "init.checkpoint=")))
        if key not in predicted:
            predicted[key] = predict_energy(compose_run(job.arguments))
        figures = predicted[key]
        one = "an image" if figures["seq_len"] is None else "a sample"
        state = "finished" if job.is_finished else "to do"
        if job.is_finished and (others := other_settings(job)):
            state += f" ({', '.join(others)})"
        print(
            f"{job.id}: {state}, {energy_text(figures['energy_pj'])} {one}, "
            f"{in_attention(figures['attention_energy_pj'])}\n    {job.command(launch)}"
        )
    return 0
