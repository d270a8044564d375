"""All fitted layers of a model together, against the outputs of the model that they came from. No labels.

Layer after layer, a fit makes each layer follow the one that it replaces, at features that have drifted already; what
counts in the end is what the whole model says. Shapes: B images, K classes, S pixels.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.nn.taught import TaughtAttention

OnStep = Callable[[int, int], None]


@dataclass(frozen=True)
class JointFitReport:
    """What a joint fit did, on the images that it was made on.

    Divergence is KL(original || converted) of the class probabilities, in nats, and agreement the share of images that
    both models put in the same class. `accepted` is False where the divergence did not fall; nothing changed then.
    """

    steps: int
    num_images: int
    seconds: float
    divergence_before: float
    divergence_after: float
    agreement_before: float
    agreement_after: float
    accepted: bool


def joint_line(report: JointFitReport) -> str:
    """The report in one line for the user."""
    outcome = "" if report.accepted else ", not kept: the divergence did not fall"
    return (
        f"joint fit: {report.steps} steps, {report.num_images} images, {report.seconds:.1f} s, divergence from the "
        f"original {report.divergence_before:.4f} -> {report.divergence_after:.4f}, same class "
        f"{report.agreement_before:.1%} -> {report.agreement_after:.1%}{outcome}"
    )


def original_of(model: nn.Module) -> nn.Module | None:
    """A copy of the model as it was before its taught layers were converted, in evaluation mode.

    None if no layer asks for a joint fit, or a layer's teacher is gone.
    """
    layers = _taught(model)
    if not any(layer.spec.joint_steps > 0 for layer in layers.values()):
        return None
    teachers = {name: layer.teacher for name, layer in layers.items()}
    # The copy leaves the taught layers out: their parameters would be copied only to be dropped.
    original = copy.deepcopy(model, {id(layer): nn.Identity() for layer in layers.values()})
    for name, teacher in teachers.items():
        if teacher is None:
            return None
        parent, _, child = name.rpartition(".")
        old = layers[name].proj.weight
        setattr(original.get_submodule(parent), child, copy.deepcopy(teacher.layer).to(old))
    return original.eval().requires_grad_(False)


def fit_jointly(
    model: nn.Module, original: nn.Module, images: Tensor, generator: torch.Generator, on_step: OnStep | None = None
) -> JointFitReport:
    """Lower KL(original || model) by Adam over what the taught layers fit, all at once, in evaluation mode.

    Steps, rate and batch size are those of the first taught layer's spec (`joint_steps`, `joint_lr`,
    `joint_batch_size`); the rate falls to zero along a cosine. Memory is that of a training step.

    Args:
        images: (B, 3, S, S), normalised.
        generator: CPU generator that draws the images of each step.
        on_step: called after each step with its number, from 1, and that of all steps.
    """
    started = time.perf_counter()
    layers = list(_taught(model).values())
    spec = layers[0].spec
    size = min(spec.joint_batch_size, len(images))
    parameters = [parameter for layer in layers for parameter in layer.jointly_fitted()]
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        target_BK = torch.cat([_log_probabilities(original(x)) for x in images.split(size)])
    divergence_before, agreement_before = _distance(model, images, target_BK, size)
    asked = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in asked:
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        optimizer = torch.optim.Adam(parameters, lr=spec.joint_lr)
        with torch.enable_grad():
            for step in range(spec.joint_steps):
                optimizer.param_groups[0]["lr"] = (
                    0.5 * spec.joint_lr * (1 + math.cos(math.pi * step / spec.joint_steps))
                )
                chosen = torch.randperm(len(images), generator=generator)[:size].to(images.device)
                loss = _divergence(target_BK[chosen], _log_probabilities(model(images[chosen])))
                for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                    parameter.grad = gradient
                optimizer.step()
                if on_step is not None:
                    on_step(step + 1, spec.joint_steps)
    finally:
        for parameter, needs in asked.items():
            parameter.requires_grad_(needs)
        for parameter in parameters:
            parameter.grad = None
    divergence_after, agreement_after = _distance(model, images, target_BK, size)
    accepted = divergence_after < divergence_before  # NaN is never smaller
    if not accepted:
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
    return JointFitReport(
        steps=spec.joint_steps,
        num_images=len(images),
        seconds=time.perf_counter() - started,
        divergence_before=divergence_before,
        divergence_after=divergence_after if accepted else divergence_before,
        agreement_before=agreement_before,
        agreement_after=agreement_after if accepted else agreement_before,
        accepted=accepted,
    )


def _taught(model: nn.Module) -> dict[str, TaughtAttention]:
    return {name: module for name, module in model.named_modules() if isinstance(module, TaughtAttention)}


def _log_probabilities(logits_BK: Tensor) -> Tensor:
    return F.log_softmax(logits_BK.float(), dim=-1)


def _divergence(target_BK: Tensor, found_BK: Tensor) -> Tensor:
    return F.kl_div(found_BK, target_BK, reduction="batchmean", log_target=True)


@torch.no_grad()
def _distance(model: nn.Module, images: Tensor, target_BK: Tensor, size: int) -> tuple[float, float]:
    found_BK = torch.cat([_log_probabilities(model(x)) for x in images.split(size)])
    agreement = (found_BK.argmax(dim=-1) == target_BK.argmax(dim=-1)).float().mean()
    return float(_divergence(target_BK, found_BK)), float(agreement)
