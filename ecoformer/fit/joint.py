"""All fitted layers of a model together, against the outputs of the model that they came from. No labels.

Layer after layer, a fit makes each layer follow the one that it replaces, at features that have drifted already; what
counts in the end is what the whole model says, of an image or of every place in it. Shapes: B images, K classes, S
pixels.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.compare import divergence, layer_calls, output_closeness
from ecoformer.fit.contract import JointFitReport
from ecoformer.fit.output_fit import adam_on_batches
from ecoformer.fit.taught import TaughtAttention
from ecoformer.nn.base import called_with
from ecoformer.nn.heads import real_tokens
from ecoformer.nn.seats import Seat

NARROW = (torch.float16, torch.bfloat16)
OnStep = Callable[[int, int], None]


def original_of(model: nn.Module) -> nn.Module | None:
    """A copy of the model as it was before its unfitted taught layers were converted, in evaluation mode.

    None if none of them asks for a joint fit. Layers whose teacher is gone stay as they are.
    """
    layers = {name: layer for name, layer in _taught(model).items() if layer.teacher is not None}
    if not any(layer.spec.joint_steps > 0 for layer in layers.values()):
        return None
    # The copy leaves the taught layers out: their parameters would be copied only to be dropped.
    copies: dict[int, Any] = {id(layer): nn.Identity() for layer in layers.values()}
    original = copy.deepcopy(model, copies)
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        teacher: Any = layer.teacher
        setattr(original.get_submodule(parent), child, copy.deepcopy(teacher.layer, copies).to(layer.proj.weight))
    return original.eval().requires_grad_(False)


def fit_jointly(
    model: nn.Module,
    original: nn.Module,
    images: Tensor,
    generator: torch.Generator,
    held_out: Tensor | None = None,
    on_step: OnStep | None = None,
) -> JointFitReport:
    """Bring `model` near to `original` by Adam over what the taught layers fit, all at once, in evaluation mode.

    The loss is KL(original || model) of the class probabilities plus the squared error of what every block with a
    taught layer gives, relative to its deviation from the mean token: probabilities alone are soon learned by heart.

    Steps, rate and batch size are those of the first taught layer that asks for steps (`joint_steps`, `joint_lr`,
    `joint_batch_size`); the rate falls to zero along a cosine. Memory is that of a training step.

    Args:
        images: (B, 3, S, S), normalised, or token ids (B, N).
        generator: CPU generator that draws the images of each step.
        held_out: further images to measure on.
        on_step: called after each step with its number, from 1, and that of all steps.
    """
    started = time.perf_counter()
    fitted_before = _taught(original)
    layers = {name: layer for name, layer in _taught(model).items() if name not in fitted_before}
    spec = next(layer.spec for layer in layers.values() if layer.spec.joint_steps > 0)
    size = min(spec.joint_batch_size, len(images))
    sets = [x for x in (images, held_out) if x is not None and len(x)]
    parameters = [parameter for layer in layers.values() for parameter in layer.jointly_fitted()]
    kept = [parameter.detach().clone() for parameter in parameters]
    before = [_closeness(model, original, x, size) for x in sets]
    with (
        _only_these_train(model, parameters),
        _in_float32(model, original),
        _loss(model, original, layers, images.float() if images.dtype in NARROW else images) as loss,
        torch.enable_grad(),
    ):
        adam_on_batches(
            parameters,
            loss,
            lr=spec.joint_lr,
            steps=spec.joint_steps,
            num_samples=len(images),
            batch_size=size,
            generator=generator,
            on_step=on_step,
        )
    after = [_closeness(model, original, x, size) for x in sets]
    accepted = after[0][0] < before[0][0]  # NaN is never smaller
    if accepted:
        for name, (x_BND, others) in layer_calls(model, layers, images[:size]).items():
            layers[name].note_shares(x_BND, others.get("mask_BN"))
    else:
        after = before
        with torch.no_grad():
            for parameter, old in zip(parameters, kept, strict=True):
                parameter.copy_(old)
        for layer in layers.values():
            layer.anneal(None)
    return JointFitReport(
        steps=spec.joint_steps,
        num_images=len(images),
        seconds=time.perf_counter() - started,
        accepted=accepted,
        held_out_images=0 if held_out is None else len(held_out),
        **{
            f"{prefix}{figure}_{when}": value
            for when, found in (("before", before), ("after", after))
            for prefix, figures in zip(("", "held_out_"), found, strict=False)
            for figure, value in zip(("divergence", "agreement"), figures, strict=True)
        },
    )


@contextmanager
def _loss(
    model: nn.Module, original: nn.Module, layers: Mapping[str, TaughtAttention], images: Tensor
) -> Iterator[Callable[[float, Tensor], Tensor]]:
    """While it lasts, the loss of a joint fit as `adam_on_batches` takes it.

    Afterwards, and whatever happens, no layer is annealed.
    """
    blocks = {name: _block_around(model, name) for name in layers}

    def loss(done: float, chosen: Tensor) -> Tensor:
        for layer in layers.values():
            layer.anneal(done)
        with torch.no_grad():
            target_BK = _log_probabilities(original, images[chosen])
        apart = divergence(_log_probabilities(model, images[chosen]), target_BK)
        return apart + sum(_relative_square(real_tokens(*outs[name]), real_tokens(*wanted[name])) for name in outs)

    try:
        with _outputs(model, blocks) as outs, _outputs(original, blocks) as wanted:
            yield loss
    finally:
        for layer in layers.values():
            layer.anneal(None)


@contextmanager
def _only_these_train(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Gradients for `parameters` alone; afterwards all parameters are as they were."""
    asked = {parameter: (parameter.requires_grad, parameter.grad) for parameter in model.parameters()}
    for parameter in asked:
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, (needs, gradient) in asked.items():
            parameter.requires_grad_(needs)
            parameter.grad = gradient


@contextmanager
def _in_float32(*models: nn.Module) -> Iterator[None]:
    """While it lasts, no parameter or buffer is narrower: squares of gradients and small steps would be lost."""
    held = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
    narrow = {tensor: tensor.dtype for tensor in held if tensor.dtype in NARROW}
    for tensor in narrow:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in narrow.items():
            tensor.data = tensor.data.to(dtype)


def _block_around(model: nn.Module, name: str) -> str:
    """The module whose output says what the layer was good for: what holds it, or what holds its seat."""
    parent = name.rpartition(".")[0]
    return parent.rpartition(".")[0] if isinstance(model.get_submodule(parent), Seat) else parent


@contextmanager
def _outputs(model: nn.Module, blocks: Mapping[str, str]) -> Iterator[dict[str, tuple[Tensor, Tensor | None]]]:
    """While it lasts, what the blocks around the layers of these names gave last, and the mask that the layers got."""
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    masks: dict[str, Tensor | None] = {}

    def note_mask(block: str) -> Any:
        return lambda module, args, kwargs: masks.update({block: called_with(args, kwargs)[1].get("mask_BN")})

    def note(block: str) -> Any:
        return lambda module, args, out: found.update({block: (out, masks[block])})

    with ExitStack() as hooks:
        for name, block in blocks.items():
            hooks.enter_context(model.get_submodule(name).register_forward_pre_hook(note_mask(block), with_kwargs=True))
        for block in set(blocks.values()):
            hooks.enter_context(model.get_submodule(block).register_forward_hook(note(block)))
        yield found


def _taught(model: nn.Module) -> dict[str, TaughtAttention]:
    return {name: module for name, module in model.named_modules() if isinstance(module, TaughtAttention)}


def require_class_scores(model: nn.Module, images: Tensor) -> None:
    """Raise InputError unless a model gives one tensor of class scores, (B, K) or (B, K, Y, X)."""
    out = model(images)
    if not isinstance(out, Tensor) or out.dim() not in (2, 4):
        raise InputError(
            "attention.joint_steps: a joint fit follows class scores, (B, K) or (B, K, Y, X), and "
            f"{type(model).__name__} gives none: fit the model together with its head, or set joint_steps=0"
        )


def _log_probabilities(model: nn.Module, images: Tensor) -> Tensor:
    return F.log_softmax(model(images).float(), dim=1)


def _relative_square(out: Tensor, target: Tensor) -> Tensor:
    """|out - target|^2 over that of the target without its mean over all but the last dimension."""
    spread = target - target.mean(dim=tuple(range(target.dim() - 1)), keepdim=True)
    return (out - target).square().sum() / spread.square().sum().clamp_min(torch.finfo(target.dtype).tiny)


@torch.no_grad()
def _closeness(model: nn.Module, original: nn.Module, images: Tensor, size: int) -> tuple[float, float]:
    """Divergence and agreement, batch by batch: maps of classes of all images may be more than memory holds."""
    found = [
        (len(x), *output_closeness(_log_probabilities(model, x), _log_probabilities(original, x)))
        for x in images.split(size)
    ]
    apart, same = (sum(part[0] * part[number] for part in found) / len(images) for number in (1, 2))
    return apart, same
