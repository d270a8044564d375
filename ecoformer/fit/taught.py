"""Layers that learn, once, from the attention that they replace.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ecoformer.errors import InputError
from ecoformer.fit.contract import FittableAttention, HashFitReport, finite_images
from ecoformer.fit.output_fit import fit_and_report
from ecoformer.fit.target import AttentionTarget
from ecoformer.fit.teacher import Teacher, affine
from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.fitted_state import FittedState
from ecoformer.nn.heads import real_tokens, split_heads
from ecoformer.nn.projections import Projections
from ecoformer.nn.specs import AttentionSpec, one_of
from ecoformer.ops.codes.distilled import Standardiser
from ecoformer.ops.codes.fitted import Attends
from ecoformer.ops.precision import full_precision, without_autocast

STEP_TOKENS = 8192
NO_TEACHER = (
    "it is fitted once, to the attention that it replaces, which is dropped afterwards: to fit anew, convert the "
    "original model again"
)


@dataclass(frozen=True)
class TaughtSpec(AttentionSpec):
    """Settings of a fit to the replaced layer's output.

    Args:
        fit_values: "true" fits the value projection too, "false" keeps it; "auto" fits it where the replaced attention
            does not sum the values of all tokens (SRA of PVTv2, LSA and GSA of Twins).
        fit_lr, fit_steps, fit_batch_size: Adam over all bits at once; fit_steps=0 leaves the random start. A step takes
            fewer images where a map has so many tokens that they would be more than 8192 together, but at least two.
        fit_images: a layer's own fit takes at most so many of the images, because it holds all their features.
        joint_steps, joint_lr, joint_batch_size: afterwards, Adam steps on all layers together, against the logits of
            the original model (`fit.joint`); 0: none.
    """

    fit_values: Literal["auto", "true", "false"] = "auto"
    fit_lr: float = 0.03
    fit_steps: int = 1000
    fit_batch_size: int = 16
    fit_images: int = 2048
    joint_steps: int = 0
    joint_lr: float = 3e-3
    joint_batch_size: int = 64

    def __post_init__(self) -> None:
        self.require_whole(0, "fit_steps", "joint_steps")
        self.require_whole(1, "fit_batch_size", "fit_images", "joint_batch_size")
        if isinstance(self.fit_values, bool):  # YAML reads the words so
            object.__setattr__(self, "fit_values", str(self.fit_values).lower())
        one_of("fit_values", self.fit_values, ("auto", "true", "false"))
        self.require_positive("fit_lr", "joint_lr")


class TaughtAttention(FittedState, ReplacementAttention, FittableAttention):
    """Base of layers that keep values and output projection and learn the rest from the layer that they replace.

    That layer is kept, outside of the module tree and the state dict, until the fit. A subclass says where a fit
    starts and how it is stored; what is fitted are parameters, which training goes on with.
    """

    parts: Mapping[str, str] = {"value": "to_v", "proj": "proj"}
    fits_parameters = True
    fit_sums: ClassVar[Callable[..., tuple[Tensor, Tensor]] | None] = None  # the error that falls; None: of the output
    spec: TaughtSpec
    to_v: nn.Linear

    def add_parts(self, source: Projections | None) -> None:
        self.register_fitted(self.proj.weight.device)
        self._teacher = None if source is None else Teacher.of(source, self.spec.name, self.spec.fit_values)

    def start(self, x_BND: Tensor, standard: Standardiser, generator: torch.Generator, teacher: Teacher) -> Attends:
        """Where the fit starts; `x_BND` are standardised tokens, which is what is fitted on."""
        raise TypeError(f"{type(self).__name__} does not say where its fit starts")

    def standard_of(self, x_BND: Tensor) -> Standardiser:
        """How tokens are standardised for a fit to these."""
        return Standardiser.of(x_BND)

    def fit_inputs(self, x_BND: Tensor, v_BHNC: Tensor | None) -> list[Tensor | None]:
        """What attends is given in a fit, of standardised tokens; values are None where they are fitted too."""
        return [x_BND, v_BHNC]

    def store(self, fitted: Any, standard: Standardiser, x_BND: Tensor) -> None:
        """Fold what was fitted on standardised tokens into the layer's own parameters, in place."""
        raise TypeError(f"{type(self).__name__} does not say how its fit is stored")

    def note_shares(self, x_BND: Tensor, mask_BN: Tensor | None = None) -> None:
        """Measure anew, on these inputs, what the layer knows about its own fit: nothing, for most kinds."""

    def jointly_fitted(self) -> list[nn.Parameter]:
        """What a joint fit changes: all that this kind adds to the layer, or its values if it adds nothing."""
        added = [parameter for part in self.new_parts for parameter in _parameters(getattr(self, part))]
        return added or list(self.to_v.parameters())

    @property
    def most_images(self) -> int:
        return self.spec.fit_images

    @property
    def slope_at(self) -> Callable[[float], float] | None:
        """How a fit of this layer sharpens its codes, as `fit_to_output` takes it; None where nothing is annealed."""
        return None

    def anneal(self, done: float | None) -> None:
        """Compute as in a fit of which a share `done` is over, with soft codes if it anneals; None: as ever again."""

    @property
    def teacher(self) -> Teacher | None:
        """The layer to learn from; None once learned, or where the layer came without weights."""
        if self.is_fitted:
            self._teacher = None
        return self._teacher

    def refit_refusal(self) -> str:
        if self.teacher is None:
            return NO_TEACHER
        computed = self.teacher.fits_values and not isinstance(self.to_v.weight, nn.Parameter)
        return "its values are to be fitted and are of low rank: fit the model first, then factorize it" * computed

    def fit_on_call(
        self, x_BND: Tensor, generator: torch.Generator, feat_size: Any = None, mask_BN: Tensor | None = None
    ) -> HashFitReport:
        return self.fit_hash(x_BND, generator, mask_BN, feat_size)

    def target(self, x_BND: Tensor, feat_size: Any = None, mask_BN: Tensor | None = None) -> AttentionTarget | None:
        """What the replaced layer makes of these inputs; None once it is gone."""
        if self.teacher is None:
            return None
        with torch.no_grad(), without_autocast(x_BND):
            x = full_precision(x_BND)
            return self.teacher.target(x, feat_size, mask_BN, self._step_images(x))

    @torch.no_grad()
    def draw_random_hash(self, x_BND: Tensor, generator: torch.Generator, mask_BN: Tensor | None = None) -> None:
        """Take the start of a fit to these inputs for fitted. Raises InputError as `fit_hash` does."""
        teacher = self.teacher
        if teacher is None:
            raise InputError(NO_TEACHER)
        with without_autocast(x_BND):
            x_BND = real_tokens(*finite_images([full_precision(x_BND)], mask_BN))
            standard = self.standard_of(x_BND)
            x_BND = standard(x_BND)
            self.store(self.start(x_BND, standard, generator, teacher), standard, x_BND)
        self.mark_fitted()

    def _step_images(self, x_BND: Tensor) -> int:
        return min(self.spec.fit_batch_size, max(2, STEP_TOKENS // x_BND.shape[1]))

    def mark_fitted(self) -> None:
        super().mark_fitted()
        self._teacher = None

    @torch.no_grad()
    def fit_hash(
        self, x_BND: Tensor, generator: torch.Generator, mask_BN: Tensor | None = None, feat_size: Any = None
    ) -> HashFitReport:
        """Fit to the replaced attention on these inputs, and drop it.

        Images with NaN or infinite features are left out. A head whose error does not fall below that of the start
        keeps the start. The objective is the squared relative error of the attention output.

        Args:
            mask_BN: True where a token takes part; None: all do.
            feat_size: height and width of the feature map, where the replaced attention needs them.
        Raises:
            InputError: the replaced attention is gone, or no image has finite features.
        """
        spec, teacher, num_images, batch_size = self.spec, self.teacher, len(x_BND), self._step_images(x_BND)
        if teacher is None:
            raise InputError(NO_TEACHER)
        with without_autocast(x_BND):
            x_BND, mask_BN = finite_images([full_precision(x_BND)], mask_BN)
            v_BND = affine(self.to_v).like(x_BND)(x_BND)
            target = teacher.target(x_BND, feat_size, mask_BN, batch_size).split_heads(self.num_heads)
            standard = self.standard_of(real_tokens(x_BND, mask_BN))
            x_BND = standard(x_BND)
            real_BND = real_tokens(x_BND, mask_BN)
            fitted, report = fit_and_report(
                self.start(real_BND, standard, generator, teacher),
                self.fit_inputs(x_BND, None if teacher.fits_values else split_heads(v_BND, self.num_heads)),
                target,
                generator,
                num_bits=self.num_bits,
                num_images=num_images,
                lr=spec.fit_lr,
                steps=spec.fit_steps,
                batch_size=batch_size,
                slope_at=self.slope_at,
                mask_BN=mask_BN,
                sums=self.fit_sums,
            )
            self.store(fitted, standard, real_BND)
            self.mark_fitted()
            return report

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state, prefix, *args)
        if any(key.startswith(prefix) for key in state):  # of another model than the teacher's
            self._teacher = None


def _parameters(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())
