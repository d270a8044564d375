"""Many ways to replace the attention of one MSA model, measured side by side without any training.

Shapes: B batch, S pixels.
"""

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.energy import Profile, count, load_profile
from ecoformer.errors import InputError
from ecoformer.files import json_text
from ecoformer.fit.hashes import fit_hashes
from ecoformer.kinds import SPECS, MSASpec, make_spec
from ecoformer.lab.closeness import quality_report as report
from ecoformer.lab.closeness.blocks import quality
from ecoformer.lab.closeness.controls import RANDOM, random_hash, uniform_copy
from ecoformer.lab.closeness.source import load_source, pick_images
from ecoformer.model.convert import convert
from ecoformer.nn.specs import AttentionSpec, split_setting


def parse_setting(text: str) -> AttentionSpec:
    """The spec of "KIND" or "KIND:key=value,..." as in configs; "random-" before it leaves hash functions random.

    Raises InputError for unknown kinds and options, and for a random hash of a kind without hashes.
    """
    spec = make_spec(*split_setting(text.removeprefix(RANDOM)))
    if spec is None:
        raise InputError(f"setting {text!r}: stock attention replaces nothing; name another kind")
    return random_hash(spec) if text.startswith(RANDOM) else spec


def attention_energy(model: nn.Module, names: Iterable[str], img_size: int, profile: Profile) -> dict[str, Any]:
    """Picojoules of one image in the named attention layers, in both conventions: {"paper": {...}, "audited": {...}}.

    `core_pj` is what lies between the projections, `layer_pj` includes them; `uncounted` lists unknown operations.
    """
    wanted, found = set(names), {}
    for convention in ("paper", "audited"):
        ledger = count(model, img_size, convention=convention)
        layers = ledger.attention(projections=True).select(lambda entry: entry.attention in wanted)
        found[convention] = {
            "core_pj": layers.attention().energy_pj(profile),
            "layer_pj": layers.energy_pj(profile),
            "uncounted": ledger.uncounted,
        }
    return found


def measure_setting(
    msa: nn.Module,
    setting: str,
    *,
    calibration: Tensor,
    held_out: Tensor,
    seed: int,
    profile: Profile,
    map_images: int = 4,
    accuracy: Callable[[nn.Module], float] | None = None,
) -> dict[str, Any]:
    """Convert a copy of `msa`, fit its hash functions, and compare it with `msa` block by block.

    Args:
        setting: as `parse_setting` reads it.
        calibration, held_out: (B, 3, S, S), normalised: images to fit on, and others to measure on.
        seed: of the random hash functions and of the fit.
        accuracy: top-1 of a model in percent; left out if None.
    Returns:
        A JSON-ready dict: setting, seed, seconds (of the fit), energy (see `attention_energy`), top1, and blocks (the
        rows of `quality`, with `fit`, the hash fit report of the block).
    """
    model = copy.deepcopy(msa)
    img_size = held_out.shape[-1]
    torch.manual_seed(seed)  # kinds that draw hash functions when they are built
    convert(model, parse_setting(setting), img_size=img_size)
    started = time.perf_counter()
    reports = {report.block: asdict(report) for report in fit_hashes(model, calibration, seed=seed)}
    seconds = time.perf_counter() - started
    rows = quality(msa, model, held_out, map_images=map_images)
    return {
        "setting": setting,
        "seed": seed,
        "seconds": seconds,
        "top1": None if accuracy is None else accuracy(model),
        "energy": attention_energy(model, [row["block"] for row in rows], img_size, profile),
        "blocks": [{**row, "fit": reports.get(row["block"])} for row in rows],
    }


def run(args: argparse.Namespace) -> int:
    """Every setting with every seed, written to --out after each: a sweep may take an hour and be cut short.

    Raises InputError: more images than there are, a setting that does not fit the model, or --out holds a sweep.
    """
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    for setting in args.settings:  # what is no setting is said before the data are read
        if parse_setting(setting).name == MSASpec.name:
            kinds = ", ".join(sorted(SPECS.keys() - {MSASpec.name}))
            raise InputError(f"--settings {setting}: others are measured by this attention; name one of {kinds}")
    if args.out is not None and (held := args.out / report.QUALITY).exists():
        raise InputError(f"--out {args.out} holds {held.name} of an earlier sweep: name another folder, or remove it")
    profile = load_profile(args.profile)
    profile.require_counted("paper")  # before anything is fitted
    source = load_source(checkpoint=args.checkpoint, root=args.data, only_msa=True, out=args.out, device=args.device)
    config, data, msa = source.config, source.data, source.model
    for setting in args.settings:  # nor is one fitted before another is refused
        convert(copy.deepcopy(msa), parse_setting(setting), img_size=data.img_size)
    held_out = pick_images(data.val_loader, data.num_val, args.images, seed=0)
    found: dict[str, Any] = {
        "title": f"{config.model.name} on {config.data.name}, {config.data.img_size} px",
        "model_kwargs": config.model.kwargs,
        "epochs": source.epoch,
        "fit_images": args.fit_images,
        "images": args.images,
        "num_val": data.num_val,
        "threads": torch.get_num_threads(),
        "top1": {},
        "rows": [],
    }
    if args.top1:
        found["top1"] = {"msa": source.accuracy(msa), "uniform": source.accuracy(uniform_copy(msa))}
    common: dict[str, Any] = {"held_out": held_out, "map_images": args.map_images, "profile": profile}
    common["accuracy"] = source.accuracy if args.top1 else None
    for seed in args.seeds:
        calibration = data.calibration_images(args.fit_images, seed=seed, key="--fit-images")
        for setting in args.settings:
            row = measure_setting(msa, setting, calibration=calibration, seed=seed, **common)
            found["rows"].append(row)
            print(f"{setting}, seed {seed}: worst block {report.worst(row):.2f}", file=sys.stderr, flush=True)
            if args.out is not None:
                report.write_report(found, args.out)
    print(json_text(found, indent=2) if args.format == "json" else report.as_text(found))
    return 0
