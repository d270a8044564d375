"""What `ecoformer benchmark-hash` does: fits of one block's hash functions, timed, each in a process of its own."""

import argparse
import os
import statistics
import time
from typing import Any

import torch

from ecoformer.errors import InputError
from ecoformer.files import json_text
from ecoformer.files.table import Column, Table, render
from ecoformer.fit.similarity_fit import HashFit, fit_hash
from ecoformer.fit.similarity_fit_naive import fit_hash_reference
from ecoformer.lab.speed.peak_memory import PeakMemory
from ecoformer.ops.ecoformer.codes import normalize
from ecoformer.run.process import json_of, processor

IMPLEMENTATIONS = {"fast": fit_hash, "reference": fit_hash_reference}


def run(args: argparse.Namespace) -> int:
    if args.num_anchors > args.shape[2]:
        raise InputError(
            f"--num-anchors {args.num_anchors} > {args.shape[2]} tokens of --shape: lower it to at most {args.shape[2]}"
        )
    if args.repeats > 1 and args.implementation != "both":
        raise InputError("--repeats needs --implementation both: each run is a process of its own")
    args.threads = args.threads or torch.get_num_threads()
    report = compare(args) if args.implementation == "both" else time_fit(args)
    print(json_text(report, indent=2) if args.format == "json" else as_table(report))
    return 0


def time_fit(args: argparse.Namespace) -> dict[str, Any]:
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
        **{key: getattr(args, key) for key in ("num_anchors", "top_k", "steps", "threads")},
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
    return json_of("benchmark-hash", implementation=implementation, format="json", **options)


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
