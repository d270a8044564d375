"""Convert a copy of a trained model, fit it to the original, and say what came of it: errors, accuracy, energy."""

import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.energy import Ledger, Profile, at_measured_shares, count
from ecoformer.engine.progress import paced
from ecoformer.errors import InputError
from ecoformer.fit.compare import output_closeness
from ecoformer.fit.contract import JointFitReport, joint_line
from ecoformer.fit.hashes import HashFitReport, fit_hashes
from ecoformer.fit.taught import TaughtSpec
from ecoformer.lab.closeness.blocks import block_errors
from ecoformer.lab.closeness.controls import ControlSpec
from ecoformer.lab.closeness.source import Source
from ecoformer.lab.closeness.sweep import parse_setting
from ecoformer.model.convert import FilterFn, convert
from ecoformer.nn.inputs import input_size
from ecoformer.nn.specs import AttentionSpec
from ecoformer.ops.codes.forms import Shifts

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
    spec: AttentionSpec,
    images: Tensor,
    *,
    seed: int,
    filter_fn: FilterFn | None = None,
    on_report: Callable[[HashFitReport], None] | None = None,
    on_joint_step: Callable[[int, int], None] | None = None,
) -> Distilled:
    """A copy of `source` with the attention of `spec`, its codes fitted. Which layers: see `convert`.

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


def spec_of(text: str, **options: Any) -> TaughtSpec:
    """The spec of "KIND:key=value,...", with those of the options that are not None.

    Raises InputError for a kind that is not distilled, or has no such option.
    """
    spec = parse_setting(text)
    if not isinstance(spec, TaughtSpec):
        kinds = "distilled, distilled_hash or hedgehog"
        raise InputError(f"attention {text!r} is not distilled: give {kinds}, with their options")
    chosen = {key: value for key, value in options.items() if value is not None}
    for key in chosen.keys() - {field.name for field in fields(spec)}:
        raise InputError(f"attention.{key} is not an option of attention={spec.name}: leave it out")
    return replace(spec, **chosen)


def measure_distilled(
    source: Source,
    spec: TaughtSpec,
    *,
    num_images: int,
    num_held_out: int,
    seed: int,
    profile: Profile,
    layers: Sequence[int | str] | None,
    with_accuracy: bool = True,
    controls: bool = True,
) -> tuple[nn.Module, dict[str, Any]]:
    """Distil `source` and measure it, with lines of progress on stderr; `source.model` is left as it is.

    Args:
        num_images: of the training split, for the fit.
        num_held_out: of the validation split, for the errors of the blocks.
        layers: which attention layers, as `attention.layers`; None: those that conversion replaces anyway.
        controls: also fit and measure uniform attention and none, with the same images and steps.
    Returns:
        The distilled model, and its figures, JSON-ready. `num_bits` is the code length, `sum_bits` hold sums of rows of
        8-bit tokens (None for bits); `blocks` are rows of `block_errors`, with error_fit, seconds, energy_pj and
        energy_pj_before of their layer; kl and agreement are with the source on the validation split.
    """
    data, held_out = source.data, source.held_out(num_held_out)
    images = data.calibration_images(num_images, seed=seed, key="--num-images")
    fit: dict[str, Any] = {"images": images, "held_out": held_out, "seed": seed}
    fit |= {"filter_fn": source.layer_filter(layers), "with_accuracy": with_accuracy}
    if with_accuracy:
        say(f"before ({source.kind}): top-1 {source.own_outcome[0]:.2f} %")
    model, found = _fitted(source, spec, "distilled", **fit)
    figures = {
        **_origin(source, spec, max(block["num_tokens"] for block in found["blocks"])),
        "seed": seed,
        "num_images": num_images,
        "num_held_out": len(held_out),
        "num_val": data.num_val,
        "threads": torch.get_num_threads(),
        **{key: found[key] for key in ("seconds", "blocks", "joint_fit", "kl", "agreement")},
        "top1_before": source.own_outcome[0] if with_accuracy else None,
        "top1_after": found["top1"],
        "controls": {},
        **_energies(source, model, found["blocks"], profile),
    }
    for mode in ("uniform", "none") if controls else ():
        control = _fitted(source, ControlSpec.like(spec, mode), mode, **fit)[1]
        errors = [row["error"] for row in control["blocks"]]
        figures["controls"][mode] = {**{key: control[key] for key in ("top1", "kl", "agreement")}, "errors": errors}
    return model, figures


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _origin(source: Source, spec: TaughtSpec, most_tokens: int) -> dict[str, Any]:
    config, form = source.config, getattr(spec, "form", None)
    return {
        "model": config.model.name,
        "model_kwargs": config.model.kwargs,
        "dataset": config.data.name,
        "img_size": config.data.img_size,
        "source": source.kind,
        "source_epochs": source.epoch,
        "training_seed": config.seed,
        "attention": spec.name,
        "codes": getattr(spec, "codes", spec.name),
        "num_bits": getattr(spec, "num_features", None),
        "levels": getattr(spec, "levels", None) if isinstance(form, Shifts) else 2,
        "projection": getattr(spec, "projection", "real"),
        "values": getattr(spec, "values", "real"),
        "sum_bits": form.sum_bits(most_tokens) if isinstance(form, Shifts) else None,
    }


def _fitted(
    source: Source, spec: TaughtSpec, name: str, images: Tensor, held_out: Tensor, with_accuracy: bool, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """`distill`, and what came of it: seconds, blocks, joint_fit; top1, kl and agreement, None if not asked for."""

    def told(report: HashFitReport) -> None:
        say(f"{name}: {report.block} error {report.attention_error:.3f} in {report.seconds:.1f} s")

    started, step = time.perf_counter(), paced(say, f"{name}: joint fit")
    made = distill(source.model, spec, images, on_report=told, on_joint_step=step, **options)
    seconds = time.perf_counter() - started
    if made.joint is not None:
        say(f"{name}: {joint_line(made.joint)}")
    errors = zip(block_errors(source.model, made.model, held_out, seed=options["seed"]), made.reports, strict=True)
    found: dict[str, Any] = {
        "seconds": seconds,
        "blocks": [row | {"error_fit": fit.attention_error, "seconds": fit.seconds} for row, fit in errors],
        "joint_fit": None if made.joint is None else asdict(made.joint),
        **dict.fromkeys(("top1", "kl", "agreement")),
    }
    if with_accuracy:
        top1, found_BK = source.outcome(made.model)
        kl, agreement = output_closeness(found_BK, source.own_outcome[1])
        say(f"{name}: top-1 {top1:.2f} %, KL {kl:.4f}, same class {agreement:.1%}")
        found |= {"top1": top1, "kl": kl, "agreement": agreement}
    return made.model, found


def _energies(source: Source, model: nn.Module, blocks: list[dict[str, Any]], profile: Profile) -> dict[str, Any]:
    """Picojoules of one image by attention, in both conventions; those of each block's layer, paper, are put into it.

    Audited, codes and ternary weights count without their zeros.
    """
    models = {name: source.empty_model(attention) for name, attention in LEDGERS.items()} | {"after": model}
    found: dict[str, Any] = {"energy_profile": profile.name}
    for convention, key in (("paper", "energy_pj"), ("audited", "energy_audited_pj")):
        size = input_size(source.model, source.config.data.img_size)
        ledgers = {name: count(m, size, convention=convention, strict=False) for name, m in models.items()}
        if convention == "audited":
            ledgers["after"] = at_measured_shares(ledgers["after"], model)
        pj = {name: ledger.energy_pj(profile) for name, ledger in ledgers.items()}
        found[key] = {"before": pj[source.kind], "after": pj["after"], **{name: pj[name] for name in LEDGERS}}
        layers = {name: ledger.attention(projections=True) for name, ledger in ledgers.items()}
        found[f"attention_{key}"] = {name: part.energy_pj(profile) for name, part in layers.items()}
        if convention == "paper":
            for block in blocks:
                block["energy_pj"] = _of_layer(layers["after"], block["block"], profile)
                block["energy_pj_before"] = _of_layer(layers[source.kind], block["block"], profile)
    return found


def _of_layer(ledger: Ledger, name: str, profile: Profile) -> float:
    return ledger.select(lambda entry: entry.attention == name).energy_pj(profile)
