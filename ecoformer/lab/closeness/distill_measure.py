"""One distillation with all that is to be said about it: errors, accuracy, energy, controls. JSON-ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from ecoformer.energy import Profile, at_measured_shares, count
from ecoformer.engine.progress import paced
from ecoformer.fit.hashes import HashFitReport
from ecoformer.fit.joint import joint_line
from ecoformer.fit.taught import TaughtSpec
from ecoformer.kinds.distilled_hash import DistilledHashSpec
from ecoformer.lab.closeness.controls import ControlSpec
from ecoformer.lab.closeness.distill import Distilled, block_errors, distill
from ecoformer.lab.closeness.source import Source

LEDGERS: dict[str, dict[str, Any]] = {
    "stock": {"name": "stock"},
    "msa": {"name": "msa"},
    "ecoformer": {"name": "ecoformer", "clamp": True},
}


@dataclass
class Measured:
    """A distilled model and its figures.

    `figures` has model, dataset, img_size, source, num_bits, seed, num_images, seconds, blocks (each block, num_tokens,
    error, error_uniform, error_random, error_fit, seconds), joint_fit (its report, or None), top1_before, top1_after,
    controls (top1 and block errors of uniform and none), energy_pj and energy_audited_pj (before, after, and of stock,
    msa and ecoformer attention).
    """

    model: nn.Module
    attention: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)


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
) -> Measured:
    """Distil `source` and measure it; `source.model` is left as it is.

    Args:
        num_images: of the training split, for the fit.
        num_held_out: of the validation split, for the errors of the blocks.
        top1_before: accuracy of the source, if it was measured before.
        controls: also fit and measure uniform attention and none, with the same images and steps.
        layers: which attention layers, as `attention.layers`; None: those that conversion replaces anyway.
        say: gets a line of progress at every step.
    """
    config, data = source.config, source.data
    images = data.calibration_images(num_images, seed=seed)
    held_out = source.held_out(num_held_out)
    chosen = None if layers is None else list(layers)
    wanted = source.layer_filter(chosen)

    def accuracy(model: nn.Module, name: str) -> float | None:
        if not with_accuracy:
            return None
        top1 = source.accuracy(model)
        say(f"{name}: top-1 {top1:.2f} %")
        return top1

    def fitted(of: TaughtSpec, name: str) -> tuple[Distilled, list[dict[str, Any]], float]:
        def told(report: HashFitReport) -> None:
            say(f"{name}: {report.block} error {report.attention_error:.3f} in {report.seconds:.1f} s")

        started = time.perf_counter()
        on_joint_step = paced(say, f"{name}: joint fit")
        made = distill(
            source.model, of, images, seed=seed, filter_fn=wanted, on_report=told, on_joint_step=on_joint_step
        )
        seconds = time.perf_counter() - started
        if made.joint is not None:
            say(f"{name}: {joint_line(made.joint)}")
        found = block_errors(source.model, made.model, held_out, seed=seed)
        blocks = [
            {**asdict(row), "error_fit": report.attention_error, "seconds": report.seconds}
            for row, report in zip(found, made.reports, strict=True)
        ]
        return made, blocks, seconds

    before = top1_before if top1_before is not None else accuracy(source.model, f"before ({source.kind})")
    distilled, blocks, seconds = fitted(spec, "distilled")
    model = distilled.model
    after = accuracy(model, "distilled")
    attention = {"name": spec.name, **{f.name: getattr(spec, f.name) for f in fields(spec)}, "layers": chosen}
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
        "seconds": seconds,
        "blocks": blocks,
        "joint_fit": None if distilled.joint is None else asdict(distilled.joint),
        "top1_before": before,
        "top1_after": after,
        "controls": {},
        **_energies(source, model, profile),
    }
    if controls:
        for mode in ("uniform", "none"):
            control = ControlSpec(
                mode=mode,
                fit_lr=spec.fit_lr,
                fit_steps=spec.fit_steps,
                fit_batch_size=spec.fit_batch_size,
                fit_images=spec.fit_images,
                joint_steps=spec.joint_steps,
                joint_lr=spec.joint_lr,
                joint_batch_size=spec.joint_batch_size,
            )
            made, rows, _ = fitted(control, mode)
            figures["controls"][mode] = {"top1": accuracy(made.model, mode), "errors": [row["error"] for row in rows]}
    return Measured(model, attention, figures)


def _energies(source: Source, model: nn.Module, profile: Profile) -> dict[str, Any]:
    """Picojoules of one image by attention, in both conventions. Audited, codes count at their share of ones."""
    models = {name: source.empty_model(attention) for name, attention in LEDGERS.items()}
    found: dict[str, Any] = {"energy_profile": profile.name}
    for convention, key in (("paper", "energy_pj"), ("audited", "energy_audited_pj")):
        ledgers = {
            name: count(m, source.config.data.img_size, convention=convention, strict=False)
            for name, m in {**models, "after": model}.items()
        }
        if convention == "audited":
            ledgers["after"] = at_measured_shares(ledgers["after"], model)
        pj = {name: ledger.energy_pj(profile) for name, ledger in ledgers.items()}
        found[key] = {"before": pj[source.kind], "after": pj["after"], **{name: pj[name] for name in LEDGERS}}
        found[f"attention_{key}"] = {
            name: ledger.attention(projections=True).energy_pj(profile) for name, ledger in ledgers.items()
        }
    return found
