"""Time and memory of fitting one block's hash functions: the fast fit, the naive one, or both in turn.

    python scripts/benchmark_hash.py --shape 32,1,3136,32 --num-bits 16 --num-anchors 25 --top-k 10 \\
        --threads 2 --implementation fast --format json

Tokens are normalised Gaussian noise from --seed, anchors tokens of the first sample. `seconds` is one fit in a
fresh process, without warm-up; `peak_extra_mib` is how far the process's resident memory rose above its level
just before the fit. `cpu_seconds` sums over the threads, and `load_average_before` tells whether something else
was running. Objectives are means over the bits (lower is better). `--implementation both` runs the two in
turn, each --repeats times in a process of its own, and adds medians and ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any

import torch

from ecoformer.cli.arguments import Parser, positive, script
from ecoformer.errors import InputError
from ecoformer.files import json_text
from ecoformer.fit.similarity_fit import HashFit, fit_hash
from ecoformer.fit.similarity_fit_naive import fit_hash_reference
from ecoformer.lab.speed.peak_memory import PeakMemory
from ecoformer.ops.ecoformer.codes import normalize
from ecoformer.run.process import json_of, processor
from ecoformer.table import Column, Table, render

IMPLEMENTATIONS = {"fast": fit_hash, "reference": fit_hash_reference}


def shape_BHNC(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be four whole numbers of at least 1, as batch,heads,tokens,head_channels"
        )
    return tuple(int(part) for part in parts)


def parser() -> argparse.ArgumentParser:
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", type=shape_BHNC, default=(32, 1, 3136, 32), help="B,H,N,C (32,1,3136,32)")
    p.add_argument("--num-bits", type=positive, default=16, help="code length per head (16)")
    p.add_argument("--num-anchors", type=positive, default=25, help="kernel anchors per head (25)")
    p.add_argument("--top-k", type=positive, default=10, help="similar and dissimilar tokens each (10)")
    p.add_argument("--lr", type=float, default=5e-4, help="learning rate (5e-4)")
    p.add_argument("--momentum", type=float, default=0.9, help="Nesterov momentum (0.9)")
    p.add_argument("--steps", type=positive, default=100, help="steps per bit (100)")
    p.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="CPU threads")
    p.add_argument("--implementation", choices=[*IMPLEMENTATIONS, "both"], default="fast")
    p.add_argument("--repeats", type=positive, default=1, help="runs of each, with --implementation both")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--format", choices=["table", "json"], default="table")
    return p


def run(args: argparse.Namespace) -> int:
    if args.num_anchors > args.shape[2]:
        raise InputError(
            f"--num-anchors {args.num_anchors} > {args.shape[2]} tokens of --shape: lower it to at most {args.shape[2]}"
        )
    if args.repeats > 1 and args.implementation != "both":
        raise InputError("--repeats needs --implementation both: each run is a process of its own")
    report = compare(args) if args.implementation == "both" else time_fit(args)
    print(json_text(report, indent=2) if args.format == "json" else as_table(report))
    return 0


def time_fit(args: argparse.Namespace) -> dict[str, Any]:
    """One fit in this process."""
    torch.set_num_threads(args.threads)
    num_heads, num_tokens = args.shape[1:3]
    generator = torch.Generator().manual_seed(args.seed)
    x_BHNC = normalize(torch.randn(args.shape, generator=generator))
    chosen = torch.randperm(num_tokens, generator=generator)[: args.num_anchors]
    A_HKM = torch.randn(num_heads, args.num_bits, args.num_anchors, generator=generator)
    anchors_HMC = x_BHNC[0, :, chosen].clone()
    fit = IMPLEMENTATIONS[args.implementation]
    load_average = os.getloadavg()[0]
    memory = PeakMemory(torch.device("cpu"))
    started, started_cpu = time.perf_counter(), time.process_time()
    result: HashFit = fit(
        x_BHNC, anchors_HMC, A_HKM, top_k=args.top_k, lr=args.lr, momentum=args.momentum, steps=args.steps
    )
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    return {
        "implementation": args.implementation,
        "seconds": round(seconds, 4),
        "cpu_seconds": round(cpu_seconds, 4),
        "load_average_before": round(load_average, 2),
        "peak_extra_mib": round(max(0.0, memory.mib), 1),
        "objective_before": float(result.objective_before_K.mean()),
        "objective_after": float(result.objective_after_K.mean()),
        "accepted_bits": int(result.accepted_K.sum()),
        "num_bits": args.num_bits,
        "shape": list(args.shape),
        "num_anchors": args.num_anchors,
        "top_k": args.top_k,
        "steps": args.steps,
        "threads": args.threads,
        "torch": torch.__version__,
        "machine": processor(),
    }


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Both implementations in turn, so that whatever else the machine does meets both alike."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in IMPLEMENTATIONS}
    for _ in range(args.repeats):
        for name, results in runs.items():
            results.append(run_apart(args, name))
    fast, reference = (
        {key: statistics.median(run[key] for run in runs[name]) for key in ("seconds", "peak_extra_mib")}
        for name in ("fast", "reference")
    )
    return {
        "fast": fast,
        "reference": reference,
        "speedup": round(reference["seconds"] / fast["seconds"], 2),
        "memory_ratio": round(reference["peak_extra_mib"] / max(fast["peak_extra_mib"], 1 / 1024), 2),
        "runs": runs,
    }


def run_apart(args: argparse.Namespace, implementation: str) -> dict[str, Any]:
    options = {name: value for name, value in vars(args).items() if name not in ("implementation", "format", "repeats")}
    options["shape"] = ",".join(map(str, args.shape))
    arguments = ["--implementation", implementation, "--format", "json"]
    return json_of(
        "benchmark-hash", arguments + [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    )


def as_table(report: dict[str, Any]) -> str:
    rows = [run for results in report["runs"].values() for run in results] if "runs" in report else [report]
    figures = ("seconds", "peak_extra_mib", "objective_before", "objective_after")
    columns = [
        Column("implementation", "implementation"),
        *(Column(key, key, "{:.4f}") for key in figures),
        Column("accepted_bits", "accepted_bits"),
    ]
    notes = []
    if "runs" in report:
        notes = [f"medians: {report['speedup']} times faster, {report['memory_ratio']} times less extra memory"]
    return render(Table(columns, rows), "table", notes=notes)


main = script(run, parser)
