"""EcoFormer's kernelised hash functions as model state.

Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors.
"""

from typing import Any

import torch
from torch import Tensor

from ecoformer.errors import InputError
from ecoformer.fit.contract import HashFitReport, code_figures, finite_images
from ecoformer.fit.similarity_fit import fit_hash
from ecoformer.nn.fitted_state import FittedState
from ecoformer.nn.heads import real_tokens
from ecoformer.ops.ecoformer.codes import hash_codes, kernel_features


class KernelHash(FittedState):
    """Kernelised hash functions of one attention layer: codes = sign((k(x, anchors) - mean) A^T).

    Everything is a buffer, so it is checkpointed, follows `.to(device)` and gets no gradient. Buffers change in
    place only: DDP and EMA hold on to the tensors. `forward` never fits.
    """

    anchors: Tensor
    A: Tensor
    mean: Tensor

    def __init__(self, num_heads: int, head_dim: int, num_bits: int, num_anchors: int, device: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": torch.float32}
        self.register_buffer("anchors", torch.zeros(num_heads, num_anchors, head_dim, **factory))
        self.register_buffer("A", torch.randn(num_heads, num_bits, num_anchors, **factory))
        self.register_buffer("mean", torch.zeros(num_heads, num_anchors, **factory))
        self.register_fitted(device)

    def forward(self, x_BHNC: Tensor, mask_BN: Tensor | None = None) -> Tensor:
        """Codes (B, H, N, K) in {-1, +1} of normalised tokens, of which those that take part count in sigma.

        Raises InputError if never fitted.
        """
        return hash_codes(x_BHNC, *self.state(x_BHNC.dtype), mask_BN)

    def state(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors, A and mean in `dtype`, to hash tokens of that dtype. Raises InputError if never fitted."""
        self.require_fitted()
        # model.half() and model.to(bfloat16) convert buffers too; codes are computed in the tokens' dtype.
        return self.anchors.to(dtype), self.A.to(dtype), self.mean.to(dtype)

    @torch.no_grad()
    def fit(
        self, x_BHNC: Tensor, generator: torch.Generator, mask_BN: Tensor | None = None, **options: Any
    ) -> HashFitReport:
        """Draw anchors from the tokens, fit A to the similarities of the batch, store both.

        Images with NaN or infinite features are left out, so the "first" image is the first of the others.

        Args:
            x_BHNC: normalised tokens of a batch.
            generator: CPU generator that draws the anchors, so that the draw is the same on every device.
            mask_BN: True where a token takes part; None: all do. Images with fewer than 2 * top_k of them are left out.
            options: top_k, lr, momentum and steps of `fit_hash`.
        Raises:
            InputError: fewer tokens than anchors, or fewer than 2 * top_k, in every image; no image with finite
                features.
        """
        num_images = len(x_BHNC)
        x_BHNC, mask_BN = finite_images([x_BHNC], mask_BN)
        anchors_HMC = self._draw_anchors(x_BHNC, generator, mask_BN)
        result = fit_hash(x_BHNC, anchors_HMC, self.A.to(x_BHNC.dtype), mask_BN, **options)
        if self.is_fitted:
            before = hash_codes(x_BHNC, *self.state(x_BHNC.dtype), mask_BN)
        else:
            before = hash_codes(x_BHNC, anchors_HMC, self.A.to(x_BHNC.dtype), result.mean_HM, mask_BN)
        after = hash_codes(x_BHNC, anchors_HMC, result.A_HKM, result.mean_HM, mask_BN)
        self._store(anchors_HMC, result.A_HKM, result.mean_HM)
        return HashFitReport(
            objective_before=float(result.objective_before_K.mean()),
            objective_after=float(result.objective_after_K.mean()),
            accepted_bits=int(result.accepted_K.sum()),
            num_bits=self.A.shape[1],
            failed_bits=int((~result.finite_K).sum()),
            skipped_images=num_images - len(x_BHNC),
            **code_figures(before, after, mask_BN),
        )

    @torch.no_grad()
    def draw(self, x_BHNC: Tensor, generator: torch.Generator, mask_BN: Tensor | None = None) -> None:
        """Take random functions for these tokens: the start of a first fit, where none was made yet, else new ones.

        Raises InputError as `fit` does.
        """
        x_BHNC, mask_BN = finite_images([x_BHNC], mask_BN)
        anchors_HMC = self._draw_anchors(x_BHNC, generator, mask_BN)
        A_HKM = torch.randn(self.A.shape, generator=generator).to(self.A) if self.is_fitted else self.A
        features_BHNM = kernel_features(x_BHNC, anchors_HMC, mask_BN)
        self._store(anchors_HMC, A_HKM, real_tokens(features_BHNM, mask_BN).mean(dim=(0, 2)))

    def _draw_anchors(self, x_BHNC: Tensor, generator: torch.Generator, mask_BN: Tensor | None) -> Tensor:
        """Tokens of one image, the same positions for every head, as the published code draws them: (H, M, C).

        The image is the first with enough of them, the first of all where none has.
        """
        num_anchors, first = self.anchors.shape[1], x_BHNC[:1]
        if mask_BN is not None:
            place = int((mask_BN.sum(dim=1) >= num_anchors).int().argmax())
            first = real_tokens(x_BHNC[place : place + 1], mask_BN[place : place + 1])
        num_tokens = first.shape[2]
        if num_tokens < num_anchors:
            raise InputError(
                f"hash fit: {num_tokens} tokens < num_anchors={num_anchors}: raise data.img_size, lower "
                f"attention.num_anchors to at most {num_tokens}, or set attention.clamp=true"
            )
        chosen = torch.randperm(num_tokens, generator=generator)[:num_anchors]
        return first[0].index_select(1, chosen.to(x_BHNC.device))

    def _store(self, anchors_HMC: Tensor, A_HKM: Tensor, mean_HM: Tensor) -> None:
        self.anchors.copy_(anchors_HMC)
        self.A.copy_(A_HKM)
        self.mean.copy_(mean_HM)
        self.mark_fitted()

    def extra_repr(self) -> str:
        num_heads, num_bits, num_anchors = self.A.shape
        return f"num_heads={num_heads}, num_bits={num_bits}, num_anchors={num_anchors}"
