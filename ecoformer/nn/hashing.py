"""Hash functions as model state, and fitting all of a model's in one forward pass.

Shapes: B batch, H heads, N tokens, C head channels, D model channels, K code bits, M anchors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.nn.precision import without_autocast
from ecoformer.ops.hash_fit import fit_hash
from ecoformer.ops.kernel_hash import hash_codes

NEVER_FITTED = (
    "the hash functions were never fitted: train with callbacks.hash_update.enabled=true, load a fitted checkpoint, or "
    "call ecoformer.nn.fit_hashes(model, images, seed)"
)


@dataclass(frozen=True)
class HashFitReport:
    """What one fit did to one layer, averaged over its heads; ready for JSON through dataclasses.asdict.

    Objectives are means over the bits of the loss that a fit lowers (lower is better). `bit_balance` is 1 where
    every bit splits the tokens in halves and 0 where all are constant; `bit_correlation` is the mean absolute
    correlation between two bits; `flipped_bits` the share of code bits that the fit changed, against the
    previous codes or, at a first fit, against the random start.

    Kinds that know the softmax attention they stand for also say how far they are from it on the images of the fit:
    relative L2 of the attention output before the output projection, of the fitted codes (`attention_error`), of random
    hash functions (`random_error`) and of the mean of all values (`uniform_error`). None for kinds that do not.

    `failed_bits` met NaN or infinity while they were fitted and kept their old functions; `skipped_images` had
    such features and were left out.
    """

    block: str
    seconds: float
    objective_before: float
    objective_after: float
    accepted_bits: int
    num_bits: int
    bit_balance: float
    bit_correlation: float
    flipped_bits: float
    attention_error: float | None = None
    random_error: float | None = None
    uniform_error: float | None = None
    failed_bits: int = 0
    skipped_images: int = 0


class KernelHash(nn.Module):
    """Kernelised hash functions of one attention layer: codes = sign((k(x, anchors) - mean) A^T).

    Everything is a buffer, so it is checkpointed, follows `.to(device)` and gets no gradient. Buffers change in
    place only: DDP and EMA hold on to the tensors. `forward` never fits.
    """

    anchors: Tensor
    A: Tensor
    mean: Tensor
    fitted: Tensor
    fit_count: Tensor

    def __init__(self, num_heads: int, head_dim: int, num_bits: int, num_anchors: int, device: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": torch.float32}
        self.register_buffer("anchors", torch.zeros(num_heads, num_anchors, head_dim, **factory))
        self.register_buffer("A", torch.randn(num_heads, num_bits, num_anchors, **factory))
        self.register_buffer("mean", torch.zeros(num_heads, num_anchors, **factory))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool, device=device))
        self.register_buffer("fit_count", torch.zeros((), dtype=torch.int64, device=device))
        self._known_fitted = False

    def forward(self, x_BHNC: Tensor) -> Tensor:
        """Codes (B, H, N, K) in {-1, +1} of normalised tokens. Raises InputError if never fitted."""
        return hash_codes(x_BHNC, *self.state(x_BHNC.dtype))

    def state(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors, A and mean in `dtype`, to hash tokens of that dtype. Raises InputError if never fitted."""
        self._require_fitted()
        return self._state(dtype)

    def _state(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        # model.half() and model.to(bfloat16) convert buffers too; codes are computed in the tokens' dtype.
        return self.anchors.to(dtype), self.A.to(dtype), self.mean.to(dtype)

    def _require_fitted(self) -> None:
        # The flag lives on the device; it is read once, not at every step. Meta tensors have no value to read.
        if self._known_fitted or self.fitted.is_meta:
            return
        if not bool(self.fitted):
            raise InputError(NEVER_FITTED)
        self._known_fitted = True

    @torch.no_grad()
    def fit(
        self,
        x_BHNC: Tensor,
        generator: torch.Generator,
        *,
        top_k: int,
        lr: float,
        momentum: float,
        steps: int,
    ) -> HashFitReport:
        """Draw anchors from the first image's tokens, fit A to the similarities of the batch, store both.

        Images with NaN or infinite features are left out, so "first" is the first of the others.

        Args:
            x_BHNC: normalised tokens of a batch.
            generator: CPU generator that draws the anchors, so that the draw is the same on every device.
        Raises:
            InputError: fewer tokens than anchors, or fewer than 2 * top_k, or no image with finite features.
        """
        started = time.perf_counter()
        num_images = len(x_BHNC)
        (x_BHNC,) = finite_images([x_BHNC])
        num_tokens, num_anchors = x_BHNC.shape[2], self.anchors.shape[1]
        if num_tokens < num_anchors:
            raise InputError(
                f"hash fit: {num_tokens} tokens < num_anchors={num_anchors}: raise data.img_size, lower "
                f"attention.num_anchors to at most {num_tokens}, or set attention.clamp=true"
            )
        chosen = torch.randperm(num_tokens, generator=generator)[:num_anchors].to(x_BHNC.device)
        anchors_HMC = x_BHNC[0].index_select(1, chosen)
        result = fit_hash(
            x_BHNC, anchors_HMC, self.A.to(x_BHNC.dtype), top_k=top_k, lr=lr, momentum=momentum, steps=steps
        )
        if bool(self.fitted):
            before = hash_codes(x_BHNC, *self._state(x_BHNC.dtype))
        else:
            before = hash_codes(x_BHNC, anchors_HMC, self.A.to(x_BHNC.dtype), result.mean_HM)
        after = hash_codes(x_BHNC, anchors_HMC, result.A_HKM, result.mean_HM)
        self.anchors.copy_(anchors_HMC)
        self.A.copy_(result.A_HKM)
        self.mean.copy_(result.mean_HM)
        self.fitted.fill_(True)
        self.fit_count.add_(1)
        self._known_fitted = True
        balance, correlation = bit_statistics(after)
        return HashFitReport(
            block="",
            seconds=time.perf_counter() - started,
            objective_before=float(result.objective_before_K.mean()),
            objective_after=float(result.objective_after_K.mean()),
            accepted_bits=int(result.accepted_K.sum()),
            num_bits=self.A.shape[1],
            bit_balance=balance,
            bit_correlation=correlation,
            flipped_bits=float((before != after).float().mean()),
            failed_bits=int((~result.finite_K).sum()),
            skipped_images=num_images - len(x_BHNC),
        )

    def extra_repr(self) -> str:
        num_heads, num_bits, num_anchors = self.A.shape
        return f"num_heads={num_heads}, num_bits={num_bits}, num_anchors={num_anchors}"


def finite_images(features: list[Tensor]) -> list[Tensor]:
    """The images (dimension 0) that are finite in all of the tensors. Raises InputError if there are none."""
    usable_B = torch.stack([x.isfinite().flatten(1).all(dim=1) for x in features]).all(dim=0)
    if not bool(usable_B.any()):
        raise InputError(
            f"hash fit: all {len(usable_B)} images give NaN or infinite features, so the model's weights or the images "
            "hold such values: start from another checkpoint or lower optim.lr"
        )
    return [x[usable_B] for x in features]


def bit_statistics(code_BHNK: Tensor) -> tuple[float, float]:
    """(balance, correlation) of codes in {-1, +1}, as `HashFitReport` defines them."""
    code_HTK = code_BHNK.transpose(0, 1).flatten(1, 2)
    mean_H1K = code_HTK.mean(dim=1, keepdim=True)
    balance = float((1 - mean_H1K.abs()).mean())
    centred = code_HTK - mean_H1K
    centred = centred / centred.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    correlation_HKK = (centred.transpose(1, 2) @ centred).abs()
    num_bits = correlation_HKK.shape[-1]
    off_diagonal = correlation_HKK.sum() - correlation_HKK.diagonal(dim1=1, dim2=2).sum()
    pairs = correlation_HKK.shape[0] * num_bits * (num_bits - 1)
    return balance, float(off_diagonal / pairs) if pairs else 0.0


class FittableAttention(nn.Module):
    """Mixin of attention layers whose codes are fitted to their own inputs; every hash family has it.

    `fits_parameters`: a fit changes trainable parameters too, not only buffers.
    """

    fits_parameters: ClassVar[bool] = False

    def fit_hash(self, x_BND: Tensor, generator: torch.Generator) -> HashFitReport:
        """Fit to a batch of this layer's inputs; the block name is left to the caller."""
        raise TypeError(f"{type(self).__name__} does not say how its hash functions are fitted")

    def fit_on_call(self, args: Sequence[Any], generator: torch.Generator) -> HashFitReport:
        """Fit to what the layer is about to be called with: x, and what timm's blocks pass beside it."""
        return self.fit_hash(args[0], generator)

    def refit_refusal(self) -> str:
        """Why the layer cannot be fitted (again); empty if it can."""
        return ""


def hash_layers(model: nn.Module) -> dict[str, FittableAttention]:
    """The model's layers with hash functions to fit, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FittableAttention)}


def has_hashes(model: nn.Module) -> bool:
    """Whether any layer has hash functions to fit."""
    return bool(hash_layers(model))


@torch.no_grad()
def fit_hashes(
    model: nn.Module, images: Tensor, seed: int, on_report: Callable[[HashFitReport], None] | None = None
) -> list[HashFitReport]:
    """Fit every hash layer in one forward pass, each on the features that the layers before it now produce.

    Args:
        model: its mode is restored; the pass runs in eval mode and without autocast.
        images: (B, 3, S, S), normalised, on the model's device.
        seed: of the anchor draw.
        on_report: called with each layer's report as soon as it is fitted.
    Returns:
        One report a layer, in the order of the forward pass; empty if there is nothing to fit.
    Raises:
        InputError: a layer cannot be fitted again.
    """
    layers = hash_layers(model)
    if not layers:
        return []
    for name, layer in layers.items():
        if layer.refit_refusal():
            raise InputError(f"{name}: {layer.refit_refusal()}")
    generator = torch.Generator().manual_seed(seed)
    reports: list[HashFitReport] = []

    def fit_before_forward(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            assert isinstance(module, FittableAttention)
            reports.append(replace(module.fit_on_call(args, generator), block=name))
            if on_report is not None:
                on_report(reports[-1])

        return hook

    hooks = [module.register_forward_pre_hook(fit_before_forward(name)) for name, module in layers.items()]
    try:
        with _eval_mode(model), without_autocast(images):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(reports) == len(layers), "a hash layer did not run, or ran twice, in one forward pass"
    return reports


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
