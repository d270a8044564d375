"""What fits and layers agree on: the reports of fits, what a layer with codes can do, and which layers have them.

Shapes: B batch, H heads, N tokens, C head channels, D model channels, K code bits.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.compare import Closeness
from ecoformer.fit.target import AttentionTarget
from ecoformer.nn.base import given
from ecoformer.nn.heads import real_tokens


@dataclass(frozen=True, kw_only=True)
class HashFitReport(Closeness):
    """What one fit did to one layer, averaged over its heads; ready for JSON through dataclasses.asdict.

    Objectives are means over the bits of the loss that a fit lowers (lower is better). `bit_balance` is 1 where
    every bit splits the tokens in halves and 0 where all are constant; `bit_correlation` is the mean absolute
    correlation between two bits; `flipped_bits` the share of code bits that the fit changed, against the
    previous codes or, at a first fit, against the random start.

    Kinds that know the softmax attention they stand for also say how close they come to it: see `Closeness`, whose
    layer is the one with the fitted codes.

    With `held_out_images` these figures and those of the bits are of that many images which the fit did not see
    (recall and correlation: of the first few, see `fit.hashes`); with 0, of the images of the fit.

    `failed_bits` met NaN or infinity while they were fitted and kept their old functions; `skipped_images` had
    such features and were left out. `block` and `seconds` are filled in by whoever asks for the fit.
    """

    block: str = ""
    seconds: float = 0.0
    objective_before: float
    objective_after: float
    accepted_bits: int
    num_bits: int
    bit_balance: float
    bit_correlation: float
    flipped_bits: float
    held_out_images: int = 0
    failed_bits: int = 0
    skipped_images: int = 0


@dataclass(frozen=True)
class JointFitReport:
    """What a joint fit did, on the images that it was made on and on `held_out_images` others.

    Divergence is KL(original || converted) of the class probabilities, in nats, and agreement the share of images (of
    places, where a model gives a map of classes) that both models put in the same class. `accepted` is False where the
    divergence did not fall; nothing changed then. The images of the fit flatter it: read the held-out figures, which
    are None without such images.
    """

    steps: int
    num_images: int
    seconds: float
    divergence_before: float
    divergence_after: float
    agreement_before: float
    agreement_after: float
    accepted: bool
    held_out_images: int = 0
    held_out_divergence_before: float | None = None
    held_out_divergence_after: float | None = None
    held_out_agreement_before: float | None = None
    held_out_agreement_after: float | None = None


def joint_line(report: JointFitReport) -> str:
    """The report in one line for the user."""
    outcome = "" if report.accepted else ", not kept: the divergence did not fall"
    held_out = ""
    if report.held_out_images:
        held_out = (
            f"; on {report.held_out_images} held-out images {report.held_out_divergence_before:.4f} -> "
            f"{report.held_out_divergence_after:.4f}, {report.held_out_agreement_before:.1%} -> "
            f"{report.held_out_agreement_after:.1%}"
        )
    return (
        f"joint fit: {report.steps} steps, {report.num_images} images, {report.seconds:.1f} s, divergence from the "
        f"original {report.divergence_before:.4f} -> {report.divergence_after:.4f}, same class "
        f"{report.agreement_before:.1%} -> {report.agreement_after:.1%}{held_out}{outcome}"
    )


class NoFiniteImages(InputError):
    """Every image of a fit gives NaN or infinite features; what was fitted before stays as it is."""


def finite_images(features: list[Tensor], mask_BN: Tensor | None = None) -> list[Any]:
    """The images (dimension 0) that are finite in all of the tensors, of each of these and of the mask, which may be
    None, last. Raises NoFiniteImages if there are none.
    """
    usable_B = torch.stack([x.isfinite().flatten(1).all(dim=1) for x in features]).all(dim=0)
    if not bool(usable_B.any()):
        raise NoFiniteImages(
            f"hash fit: all {len(usable_B)} images give NaN or infinite features, so the model's weights or the images "
            "hold such values: start from another checkpoint or lower optim.lr"
        )
    return [None if x is None else x[usable_B] for x in (*features, mask_BN)]


@torch.no_grad()
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


def code_figures(old_BHNK: Tensor, new_BHNK: Tensor, mask_BN: Tensor | None = None) -> dict[str, Any]:
    """`bit_balance`, `bit_correlation` and `flipped_bits` of `HashFitReport`, of codes before and after a fit."""
    old_BHNK, new_BHNK = (real_tokens(code, mask_BN) for code in (old_BHNK, new_BHNK))
    balance, correlation = bit_statistics(new_BHNK)
    flipped = float((old_BHNK != new_BHNK).float().mean())
    return {"bit_balance": balance, "bit_correlation": correlation, "flipped_bits": flipped}


class FittableAttention(nn.Module):
    """Mixin of attention layers whose codes are fitted to their own inputs; every hash family has it.

    `fits_parameters`: a fit changes trainable parameters too, not only buffers. `shows_codes`: `signed_codes` and
    `draw_random_hash` are there, so that a fit can be measured on held-out images.
    """

    fits_parameters: ClassVar[bool] = False
    shows_codes: ClassVar[bool] = False

    @property
    def is_fitted(self) -> bool:
        """Whether the layer has fitted functions to fall back on."""
        return False

    @property
    def num_bits(self) -> int:
        """Code length per head; 0 without codes."""
        return int(getattr(getattr(self, "spec", None), "num_bits", 0))

    @property
    def most_images(self) -> int | None:
        """How many images the layer's own fit takes at most; None: any number."""
        return None

    def fit_hash(self, x_BND: Tensor, generator: torch.Generator, mask_BN: Tensor | None = None) -> HashFitReport:
        """Fit to a batch of this layer's inputs. `mask_BN`, here and below: True where tokens take part; None: all."""
        raise TypeError(f"{type(self).__name__} does not say how its hash functions are fitted")

    def fit_on_call(
        self, x_BND: Tensor, generator: torch.Generator, feat_size: Any = None, mask_BN: Tensor | None = None
    ) -> HashFitReport:
        """Fit to what the layer is about to be called with: x, and what timm's blocks pass beside it."""
        return self.fit_hash(x_BND, generator, **given(mask_BN=mask_BN))

    def refit_refusal(self) -> str:
        """Why the layer cannot be fitted (again); empty if it can."""
        return ""

    def target(self, x_BND: Tensor, feat_size: Any = None, mask_BN: Tensor | None = None) -> AttentionTarget | None:
        """The attention that the codes stand for on these inputs; None if the layer does not know it."""
        return None

    def signed_codes(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Codes (B, H, N, K) in {-1, +1} of these inputs, the keys' after the queries' along B."""
        raise TypeError(f"{type(self).__name__} does not show its codes")

    def draw_random_hash(self, x_BND: Tensor, generator: torch.Generator, mask_BN: Tensor | None = None) -> None:
        """Take random hash functions, the floor that a fit has to beat.

        Where the layer is unfitted, those that `fit_hash` on the same inputs and generator would start from.
        """
        raise TypeError(f"{type(self).__name__} does not say how its random hash functions are drawn")


def hash_layers(model: nn.Module) -> dict[str, FittableAttention]:
    """The model's layers with hash functions to fit, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FittableAttention)}


def has_hashes(model: nn.Module) -> bool:
    """Whether a model has layers that are fitted to images."""
    return bool(hash_layers(model))


def nothing_fitted(layer: FittableAttention, num_images: int) -> HashFitReport:
    """The report of a layer that kept its functions because no image gave finite features."""
    found: dict[str, Any] = {"accepted_bits": 0, "num_bits": layer.num_bits, "failed_bits": layer.num_bits}
    found |= dict.fromkeys(("objective_before", "objective_after", "bit_balance", "bit_correlation"), float("nan"))
    return HashFitReport(**found, flipped_bits=0.0, skipped_images=num_images)
