"""Look through a data set before a job: counts per split and class, and a list of everything that is wrong.

    python scripts/check_data.py ROOT
    python scripts/check_data.py ROOT --val-only --format json
    python scripts/check_data.py ROOT --layout text_bytes --seq-len 1024
    python scripts/check_data.py --layout listops --seq-len 256 --max-depth 5

ROOT holds image folders (train/CLASS, val/CLASS), WebDataset shards (train*.tar, val*.tar, classes.txt) or a Hugging
Face dataset on disk; which of them is seen from its files. Every image is decoded. Sequences are asked for by --layout
and shown with their lengths; listops without ROOT are generated. Exits with 0 if nothing is wrong, 1 if there are
faults, 2 if ROOT is missing or no data set.
"""

import argparse
from dataclasses import asdict
from typing import Any

from ecoformer.cli.arguments import Parser, positive, script
from ecoformer.errors import InputError, counted
from ecoformer.files import json_text
from ecoformer.run.process import available_cores

SHAPE = ("max_depth", "max_args", "min_tokens")
SHOWN_FAULTS = 100  # in the table; JSON has all of them


@script(__name__, __doc__)
def main(p: Parser) -> None:
    p.add_argument("root", metavar="ROOT", nargs="?")
    layouts = ("auto", "folder", "webdataset", "hfds", "listops", "text_bytes")
    p.add_argument("--layout", choices=layouts, default="auto")
    p.add_argument("--val-only", action="store_true", help="a data set for evaluation: no training split is needed")
    p.add_argument("--train-split", metavar="SPLIT", help="pattern of shards or name of a split, as data.train_split")
    p.add_argument("--val-split", metavar="SPLIT", help="the same, as data.val_split")
    for key in ("image", "label", "text"):
        p.add_argument(f"--{key}-key", metavar="KEY", help=f"as data.{key}_key")
    p.add_argument("--seq-len", type=int, metavar="N", help="as data.seq_len: say how many samples it cuts")
    for key in SHAPE:
        p.add_argument(f"--{key.replace('_', '-')}", type=int, metavar="N", help=f"as data.{key}, of generated listops")
    p.add_argument("--num-classes", type=positive, metavar="N", help="as data.num_classes")
    p.add_argument("--class-names", metavar="FILE", help="as data.class_names")
    p.add_argument("--workers", type=positive, default=min(8, available_cores()), help="processes that decode images")
    p.add_argument("--format", choices=("table", "json"), default="table")


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ecoformer.config.schema import DataConfig
    from ecoformer.data.audit import audit

    if args.root is None and (args.layout != "listops" or args.seq_len is None):
        raise InputError(
            "ROOT is missing: give the folder of the data, or --layout listops --seq-len N for generated ones"
        )
    keys = ("root", "train_split", "val_split", "image_key", "label_key", "num_classes", "class_names")
    data = DataConfig(name=args.layout, **{key: getattr(args, key) for key in (*keys, "text_key", "seq_len", *SHAPE)})
    console = Console(stderr=True)
    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("decoding", total=None)
        found = audit(
            data,
            with_train=not args.val_only,
            workers=args.workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    show(found, args.format)
    return 1 if found.faults else 0


def show(found: Any, kind: str) -> None:
    from ecoformer.data.layouts import summary

    if kind == "json":
        print(json_text({**asdict(found), "ok": not found.faults}, indent=2))
        return
    print(f"{found.root}: {found.layout}")
    for split in found.splits:
        print(summary(split))
    for line in (*found.notes, *found.faults[:SHOWN_FAULTS]):
        print(line)
    if len(found.faults) > SHOWN_FAULTS:
        print(f"... and {len(found.faults) - SHOWN_FAULTS} more; --format json lists all")
    print(counted(len(found.faults), "fault") if found.faults else "nothing is wrong")
