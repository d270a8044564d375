"""What `ecoformer sequence` does with its arguments: the ledger, measurements that go on where they were, advice."""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ecoformer.errors import InputError
from ecoformer.files import json_text, write_json, write_text
from ecoformer.lab.sequence.advisor import advise, parse_budget
from ecoformer.lab.sequence.encoder import SHAPES, Kind, Shape, all_kinds, token_list
from ecoformer.lab.sequence.measurement import Measurements, Point, measure_apart, medians, read_measurements
from ecoformer.lab.sequence.sequence_report import advice_text, as_json, as_text, plot_metric
from ecoformer.lab.sequence.study import Study, ledger_row, merge
from ecoformer.nn.base import given
from ecoformer.report.figures import save_figure
from ecoformer.run.lock import owned
from ecoformer.run.process import processor

MEASURED = "measured.json"
# What only one of the two looks at, and what it is by default.
OF_STUDY = {"tokens": "64,128,...,8192", "rounds": 3, "layers": 1, "threads": None, "max_seconds": None}
OF_ADVICE: dict[str, Any] = {"at_tokens": None, "budget": ""}


def run(args: argparse.Namespace) -> int:
    args.kinds = args.kinds or all_kinds()
    own, others, what = (OF_ADVICE, OF_STUDY, "with") if args.advise else (OF_STUDY, OF_ADVICE, "without")
    for key in others:
        if getattr(args, key) is not None:
            raise InputError(f"--{key.replace('_', '-')} is not looked at {what} --advise: leave it out")
    for key, default in own.items():
        if getattr(args, key) is None:
            setattr(args, key, default)
    if args.advise:
        print(advice(args))
        return 0
    args.threads = torch.get_num_threads() if args.threads is None else args.threads
    for key, least in (("layers", 1), ("threads", 1), ("rounds", 0)):
        if getattr(args, key) < least:
            raise InputError(f"--{key} {getattr(args, key)} must be at least {least}")
    kinds, shape, tokens = [Kind.parse(label) for label in args.kinds], shape_of(args), token_list(args.tokens)
    if args.rounds and args.out is None:
        raise InputError("measurements are kept in --out: add --out DIR, or --rounds 0 for the ledger alone")
    rows = [ledger_row(kind, shape, count) for kind in kinds for count in tokens]
    if args.rounds:
        works = {(row["kind"], row["tokens"]) for row in rows if row["refused"] is None}
        points = [
            Point(kind, shape, count, args.layers, args.threads)
            for count in tokens
            for kind in kinds
            if (kind.label, count) in works
        ]
        args.out.mkdir(parents=True, exist_ok=True)
        with owned(args.out, same_launch=False):  # two that measure would falsify each other's times
            measure_missing(points, args)
    study = Study(rows, shape)
    content = held(args.out, shape)
    if content is not None:
        study = Study(merge(rows, medians(content, shape), content["refused"]), shape, content["settings"])
    if args.out is not None:
        write(study, args.out)
    text = json_text(as_json(study), indent=2) if args.format == "json" else as_text(study, args.format == "md")
    print(text)
    return 0


def shape_of(args: argparse.Namespace) -> Shape:
    """The named shape, or one of --width. Raises InputError for sizes that contradict each other."""
    name = args.shape or ("bert_base" if args.width is None else "custom")
    if name != "custom":
        of_others = [f"--{key}" for key in ("width", "heads", "mlp", "depth") if getattr(args, key) is not None]
        if of_others:
            raise InputError(
                f"{of_others[0]} belongs to a custom shape, {name} is fixed: give --width with it, no --shape"
            )
        return SHAPES[name]
    if args.width is None:
        raise InputError("--shape custom needs --width")
    sizes = {"heads": max(1, args.width // 64), "mlp": 4 * args.width, "layers": 12}
    return Shape("custom", args.width, **sizes | given(heads=args.heads, mlp=args.mlp, layers=args.depth))


def measure_missing(points: list[Point], args: argparse.Namespace) -> None:
    """Measure what is missing, with a bar on standard error, until it is done or --max-seconds have passed."""
    shape = shape_of(args)
    settings = {**block_of(shape), "layers": args.layers, "threads": args.threads}
    settings |= {"machine": processor(), "torch": torch.__version__}
    kept = Measurements(args.out / MEASURED, settings)
    todo = list(kept.todo(points, args.rounds))
    started = time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("measuring", total=len(todo))
        for done, point in enumerate(todo):
            if args.max_seconds is not None and time.monotonic() - started > args.max_seconds:
                bar.console.print(f"stopped after {args.max_seconds:g} s: {len(todo) - done} points are left")
                break
            bar.update(task, description=point.key)
            kept.add(point, measure_apart(point))
            bar.advance(task)


def held(out: Path | None, shape: Shape, refuse: bool = True) -> dict[str, Any] | None:
    """The measurements in a folder; None if it holds none. Those of another block are refused, or None too."""
    if out is None or not (out / MEASURED).exists():
        return None
    content = read_measurements(out / MEASURED)
    found = {key: content["settings"].get(key) for key in block_of(shape)}
    if found == block_of(shape):
        return content
    if refuse:
        raise InputError(f"{out / MEASURED} was measured with {found}, not {block_of(shape)}: choose another --out")
    return None


def block_of(shape: Shape) -> dict[str, int]:
    """What decides the cost of a block."""
    return {"width": shape.width, "heads": shape.heads, "mlp": shape.mlp}


def write(study: Study, out: Path) -> None:
    write_json(out / "study.json", as_json(study), indent=1)
    shape = study.shape
    title = f"{shape.name}: {shape.layers} blocks, width {shape.width}, {shape.heads} heads, MLP {shape.mlp}"
    write_text(out / "report.md", f"{title}\n\n{as_text(study, in_markdown=True)}\n")
    for metric in study.metrics():
        save_figure(plot_metric(study, metric, title), out / f"{metric}.png")


def advice(args: argparse.Namespace) -> str:
    """The ranking of --advise as text or JSON."""
    if args.at_tokens is None or args.at_tokens < 1:
        raise InputError("--advise needs --at-tokens N, at least 1")
    shape = shape_of(args)
    content = held(args.out, shape, refuse=False)
    measured = {} if content is None else medians(content, shape)
    budget = parse_budget(args.budget) if args.budget else {}
    found = advise(args.kinds, shape, args.at_tokens, budget, measured)
    return json_text(found, indent=2) if args.format == "json" else advice_text(found, args.format == "md")
