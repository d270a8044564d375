"""What `ecoformer benchmark` does: variants in turn, their peak memory, and the same beside one busy process."""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from ecoformer.engine import distributed
from ecoformer.errors import InputError
from ecoformer.files import json_text, write_json
from ecoformer.files.table import Column, Table, markdown, render
from ecoformer.lab.speed.cases import SpeedCase, Variant
from ecoformer.lab.speed.peak_memory import PeakMemory, refuse_more_than_available, within_memory
from ecoformer.lab.speed.throughput import Pass, interleaved_seconds
from ecoformer.lab.subject import attentions_of, default_size, run_of, short_name
from ecoformer.nn.inputs import takes_sequences
from ecoformer.run import process
from ecoformer.run.build import session
from ecoformer.run.process import json_of, processor

SETTINGS = ("model", "attention", "img_size", "batch_size", "mode", "device", "precision")
ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "THP_MEM_ALLOC")  # settings that change all rates
FIGURES = (
    *("images_per_second", "ratio_to_stock", "slowdown", "peak_mib"),
    *("milliseconds", "milliseconds_low", "milliseconds_high"),
    *("joules_per_image", "error"),
)
PEAKS = 3  # at most so many processes on a CPU, whose peaks have a median
OF_SEQUENCES = {"img_size": "tokens"}  # headings where images are sequences
OF_SEQUENCES |= {"images_per_second": "sequences_per_second", "joules_per_image": "joules_per_sequence"}


def run(args: argparse.Namespace) -> int:
    args.device = str(distributed.device_of(args.device, "--device "))
    args.threads = args.threads or torch.get_num_threads()
    torch.set_num_threads(args.threads)
    settle(args)
    if args.peak_only:
        print(json_text({"peak_mib": peak_mib(speed_case(args, args.attention[0], args.img_size[0]))}))
        return 0
    for label in args.attention:
        Variant.parse(label)
    if args.loop:
        from ecoformer.lab.speed import loop

        cases = [speed_case(args, label, size) for size in args.img_size for label in args.attention]
        with session(args.device, threads=args.threads, deterministic=False) as device:
            rows = [row | machine(args) for row in loop.run(args, cases, device)]
            if distributed.is_main():
                show(args, rows, loop.table(rows))
        return 0
    rows = [row for img_size in args.img_size for row in benchmark(args, img_size)]
    refused = [row for row in rows if "error" in row]
    if len(refused) == len(rows):
        raise InputError(rows[0]["error"])
    if args.beside_load:
        rows += beside_load(args, rows)
    show(args, rows, table(rows))
    for row in refused:
        print(
            f"error: {speed_case(args, row['attention'], row['img_size']).name} is left out: {row['error']}",
            file=sys.stderr,
        )
    return 2 if refused else 0


def show(args: argparse.Namespace, rows: list[dict[str, Any]], table: Table) -> None:
    """Print rows in --format, and write them to --out."""
    if args.out is not None:
        write_json(args.out, rows)
    texts = {"json": json_text(rows, indent=2), "markdown": markdown(table)}
    print(texts.get(args.format) or render(table, "table"))


def settle(args: argparse.Namespace) -> None:
    """Put what is not given into the arguments: a checkpoint's model and attention, a model's own size."""
    if args.checkpoint is not None:
        name = run_of(args.checkpoint).config.model.name
        if args.model not in (None, name):
            raise InputError(f"--checkpoint {args.checkpoint} holds {name}, not {args.model}: leave --model out")
        args.model = name
        if not args.peak_only:
            args.attention = attentions_of(args.checkpoint, args.attention)
    args.model = args.model or "pvt_v2_b0"
    args.attention = args.attention or ["stock", "msa", "ecoformer"]
    args.img_size = args.img_size or [default_size(args.model, args.checkpoint)]


def speed_case(args: argparse.Namespace, attention: str, img_size: int) -> SpeedCase:
    shared = {key: getattr(args, key) for key in ("model", "batch_size", "mode", "device", "precision", "seed")}
    shared |= {key: getattr(args, key) for key in ("channels_last", "layer", "clamp", "checkpoint")}
    return SpeedCase(attention=attention, img_size=img_size, **shared)


def benchmark(args: argparse.Namespace, img_size: int) -> list[dict[str, Any]]:
    """One row per variant at one image size; of a variant that cannot run, it says why under `error`."""
    cases = [speed_case(args, attention, img_size) for attention in args.attention]
    peaks: dict[str, list[float]] = {}
    steps: dict[str, Pass] = {}
    faults: dict[str, str] = {}
    for case in cases:
        try:
            # Memory first: what does not fit ends that process and not this one.
            peaks[case.attention] = [] if args.no_peak else peaks_apart(args, case)
            with within_memory(too_large(case)):
                steps[case.attention] = case.step()
                steps[case.attention]()
        except InputError as error:
            faults[case.attention] = str(error)
    seconds = interleaved_seconds(steps, torch.device(args.device), args.rounds, args.min_seconds)
    rows = []
    for case in cases:
        if case.attention in faults:
            rows.append({**case.settings(), "error": faults[case.attention]})
            continue
        rows.append(row(args, case, seconds, peaks[case.attention]))
        if args.joules:
            rows[-1]["joules_per_image"] = joules(case)
        if args.profile:
            longest = profile(steps[case.attention], args.profile, torch.device(args.device))
            print(f"{case.attention}, {case.size}\n{longest}", file=sys.stderr)
    return rows


def too_large(case: SpeedCase) -> str:
    return (
        f"{case.attention} at {case.size} needs more memory than there is with batch size {case.batch_size}: "
        "lower --batch-size or leave it out"
    )


def beside_load(args: argparse.Namespace, alone: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows while another process keeps one core busy; `slowdown` is their time over that of `alone`."""
    quiet = argparse.Namespace(**{**vars(args), "no_peak": True, "profile": None, "joules": False})
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            rows = [found for img_size in args.img_size for found in benchmark(quiet, img_size)]
        finally:
            busy.kill()
    rows = [row for row in rows if "error" not in row]
    for beside, before in zip(rows, (row for row in alone if "error" not in row), strict=True):
        beside |= {"beside_load": True, "slowdown": round(beside["milliseconds"] / before["milliseconds"], 2)}
    return rows


def row(
    args: argparse.Namespace, case: SpeedCase, seconds: dict[str, list[float]], peaks: list[float]
) -> dict[str, Any]:
    mine, stock = seconds[case.attention], seconds.get("stock")
    ratio = statistics.median(s / m for s, m in zip(stock, mine, strict=True)) if stock else None
    median = statistics.median(mine)
    return {
        **case.settings(),
        "images_per_second": round(case.batch_size / median, 2),
        "ratio_to_stock": None if ratio is None else round(ratio, 3),
        "peak_mib": round(statistics.median(peaks), 1) if peaks else None,
        "milliseconds": round(1e3 * median, 2),
        "milliseconds_low": round(1e3 * min(mine), 2),
        "milliseconds_high": round(1e3 * max(mine), 2),
        **({"peak_mib_low": round(min(peaks), 1), "peak_mib_high": round(max(peaks), 1)} if peaks else {}),
        "rounds": args.rounds,
        **machine(args),
    }


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What a row says of where it was measured."""
    device = torch.device(args.device)
    return {
        "threads": args.threads,
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "runtime": process.PREPARED,  # what the process set up for itself (run.process)
        "environment": {key: value for key, value in sorted(os.environ.items()) if key.startswith(ALLOCATOR)},
    }


def peaks_apart(args: argparse.Namespace, case: SpeedCase) -> list[float]:
    """Peak MiB of a variant, each from a process of its own: how memory that is kept gets cut up is chance."""
    options = {**asdict(case), "layer": case.layer or None, "threads": args.threads}
    times = 1 if torch.device(args.device).type == "cuda" else min(PEAKS, args.rounds)
    return [json_of("benchmark", peak_only=True, **options)["peak_mib"] for _ in range(times)]


def peak_mib(case: SpeedCase) -> float:
    refuse_more_than_available()
    with within_memory(too_large(case)):
        memory = PeakMemory(torch.device(case.device))
        step = case.step()
        memory.reset()
        for _ in range(3):
            step()
    return memory.mib


def joules(case: SpeedCase) -> float | None:
    from ecoformer.energy.measure import measure_model

    found = measure_model(case.build(), case.img_size, case.device, batch_size=case.batch_size)
    if found.joules_per_image is None:
        print(f"{case.attention}: joules unavailable: {found.reason}", file=sys.stderr)
    return found.joules_per_image


def profile(step: Pass, count: int, device: torch.device) -> str:
    """The operations that take longest by themselves on a device, and their share of one pass."""
    step()
    with torch.profiler.profile() as profiler:
        step()
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times = {event.key: getattr(event, key) for event in profiler.key_averages()}
    total = sum(times.values())
    largest = sorted(times.items(), key=lambda item: -item[1])[:count]
    return "\n".join(f"{100 * time / total:5.1f} %  {time / 1e3:9.2f} ms  {name}" for name, time in largest)


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The columns that some row has a figure for; on a narrow terminal, settings that all rows share may give way."""
    known = [key for key in (*SETTINGS, "checkpoint", *FIGURES) if any(row.get(key) is not None for row in rows)]
    shared = {key for key in SETTINGS if len({row[key] for row in rows}) == 1} - {"attention"}
    wide = shared | {"milliseconds_low", "milliseconds_high"}
    rows = [{**row, "checkpoint": short_name(row.get("checkpoint"))} for row in rows]
    words = OF_SEQUENCES if takes_sequences(rows[0]["model"]) else {}
    columns = [
        Column(words.get(key, key), lambda row, key=key: row.get(key), none="", left=key == "error", wide=key in wide)
        for key in known
    ]
    return Table(columns, rows)
