"""Convert a copy of a trained model, fit it to the original, and say what came of it: errors, accuracy, energy."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.energy import Profile, at_measured_shares, count
from ecoformer.engine.progress import paced
from ecoformer.fit.hashes import HashFitReport, fit_hashes
from ecoformer.fit.joint import JointFitReport, joint_line
from ecoformer.fit.taught import TaughtSpec
from ecoformer.kinds.distilled import DistilledHashSpec
from ecoformer.lab.closeness.blocks import FLOORS, block_errors
from ecoformer.lab.closeness.controls import ControlSpec
from ecoformer.lab.closeness.source import Source
from ecoformer.model.convert import FilterFn, convert

LEDGERS: dict[str, dict[str, Any]] = {
    "stock": {"name": "stock"},
    "msa": {"name": "msa"},
    "ecoformer": {"name": "ecoformer", "clamp": True},
}


@dataclass(frozen=True)
class Distilled:
    """A converted and fitted copy of a model, and what the fits report of the images that they were made on."""

    model: nn.Module
    reports: list[HashFitReport]
    joint: JointFitReport | None = None


def distill(
    source: nn.Module,
    spec: TaughtSpec,
    images: Tensor,
    *,
    seed: int,
    filter_fn: FilterFn | None = None,
    on_report: Callable[[HashFitReport], None] | None = None,
    on_joint_step: Callable[[int, int], None] | None = None,
) -> Distilled:
    """A copy of `source` with the attention of `spec`, fitted to that of `source`. Which layers: see `convert`.

    Args:
        source: a timm model as it is, or one converted to MSA.
        images: (B, 3, S, S), normalised, of the training split.
        seed: of the random start and of the order of images.
    """
    model = copy.deepcopy(source)
    convert(model, spec, filter_fn, img_size=images.shape[-1])
    joint: list[JointFitReport] = []
    reports = fit_hashes(model, images, seed, on_report, on_joint=joint.append, on_joint_step=on_joint_step)
    return Distilled(model, reports, joint[0] if joint else None)


def measure(
    source: Source,
    spec: DistilledHashSpec,
    *,
    num_images: int,
    seed: int,
    profile: Profile,
    num_held_out: int = 64,
    top1_before: float | None = None,
    with_accuracy: bool = True,
    controls: bool = True,
    layers: Sequence[int | str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Distil `source` and measure it; `source.model` is left as it is.

    Args:
        num_images: of the training split, for the fit.
        num_held_out: of the validation split, for the errors of the blocks.
        top1_before: accuracy of the source, if it was measured before.
        controls: also fit and measure uniform attention and none, with the same images and steps.
        layers: which attention layers, as `attention.layers`; None: those that conversion replaces anyway.
        say: gets a line of progress at every step.
    Returns:
        The distilled model, and its figures, JSON-ready: model, dataset, img_size, source, num_bits, seed, num_images,
        seconds, blocks (of each the fields `FLOORS`, error_fit, seconds), joint_fit (its report, or None), top1_before,
        top1_after, controls (top1 and block errors of uniform and none), energy_pj and energy_audited_pj (before,
        after, and of stock, msa and ecoformer attention), and under what they were measured.
    """
    config, data = source.config, source.data
    images, held_out = data.calibration_images(num_images, seed=seed), source.held_out(num_held_out)
    filter_fn = source.layer_filter(layers)

    def accuracy(model: nn.Module, name: str) -> float | None:
        if not with_accuracy:
            return None
        top1 = source.accuracy(model)
        say(f"{name}: top-1 {top1:.2f} %")
        return top1

    def fitted(of: TaughtSpec, name: str) -> dict[str, Any]:
        def told(report: HashFitReport) -> None:
            say(f"{name}: {report.block} error {report.attention_error:.3f} in {report.seconds:.1f} s")

        started, step = time.perf_counter(), paced(say, f"{name}: joint fit")
        made = distill(source.model, of, images, seed=seed, filter_fn=filter_fn, on_report=told, on_joint_step=step)
        seconds = time.perf_counter() - started
        if made.joint is not None:
            say(f"{name}: {joint_line(made.joint)}")
        found = zip(block_errors(source.model, made.model, held_out, seed=seed), made.reports, strict=True)
        return {
            "model": made.model,
            "seconds": seconds,
            "blocks": [
                {**row.figures(FLOORS), "error_fit": report.attention_error, "seconds": report.seconds}
                for row, report in found
            ],
            "joint_fit": None if made.joint is None else asdict(made.joint),
            "top1": accuracy(made.model, name),
        }

    before = top1_before if top1_before is not None else accuracy(source.model, f"before ({source.kind})")
    distilled = fitted(spec, "distilled")
    figures = {
        "model": config.model.name,
        "model_kwargs": config.model.kwargs,
        "dataset": config.data.name,
        "img_size": config.data.img_size,
        "source": source.kind,
        "source_epochs": source.epoch,
        "num_bits": spec.num_bits,
        "seed": seed,
        "num_images": num_images,
        "num_held_out": len(held_out),
        "num_val": data.num_val,
        "threads": torch.get_num_threads(),
        **{key: distilled[key] for key in ("seconds", "blocks", "joint_fit")},
        "top1_before": before,
        "top1_after": distilled["top1"],
        "controls": {},
        **_energies(source, distilled["model"], profile),
    }
    for mode in ("uniform", "none") if controls else ():
        control = fitted(ControlSpec.like(spec, mode), mode)
        errors = [row["error"] for row in control["blocks"]]
        figures["controls"][mode] = {"top1": control["top1"], "errors": errors}
    return distilled["model"], figures


def _energies(source: Source, model: nn.Module, profile: Profile) -> dict[str, Any]:
    """Picojoules of one image by attention, in both conventions. Audited, codes count at their share of ones."""
    models = {name: source.empty_model(attention) for name, attention in LEDGERS.items()} | {"after": model}
    found: dict[str, Any] = {"energy_profile": profile.name}
    for convention, key in (("paper", "energy_pj"), ("audited", "energy_audited_pj")):
        size = source.config.data.img_size
        ledgers = {name: count(m, size, convention=convention, strict=False) for name, m in models.items()}
        if convention == "audited":
            ledgers["after"] = at_measured_shares(ledgers["after"], model)
        pj = {name: ledger.energy_pj(profile) for name, ledger in ledgers.items()}
        found[key] = {"before": pj[source.kind], "after": pj["after"], **{name: pj[name] for name in LEDGERS}}
        found[f"attention_{key}"] = {
            name: ledger.attention(projections=True).energy_pj(profile) for name, ledger in ledgers.items()
        }
    return found
