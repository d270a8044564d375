"""Fit the hash functions of kernelised binary codes, with no N x N matrix.

Source: Liu et al., "EcoFormer: Energy-Saving Attention with Linear Complexity", NeurIPS 2022, section 4.2. The
naive form is `hash_fit_reference`; both give the same bits.

Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors, T steps; P = H * B (head, sample)
pairs in that order; r bits already fitted.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ecoformer.errors import InputError
from ecoformer.ops.kernel_hash import kernel_features, sign

SIMILARITIES_PER_CHUNK = 1 << 20  # 4 MiB of float32: a block that the last-level cache holds


@dataclass(frozen=True)
class HashFit:
    """A fitted hash and how the fit went. Everything is on the input's device; no field needs a gradient.

    A_HKM, mean_HM: the hash functions and the mean kernel features, float32 (float64 for float64 input).
    accepted_K: True where the hard-code loss fell; elsewhere A_HKM keeps its old row.
    objective_before_K, objective_after_K: the hard-code loss of each bit with the old and with the kept row,
        float64; the smaller the better.
    finite_K: False where optimising the bit met NaN or infinity, which also means "not accepted".
    usable_B: False for samples left out because a token or a kernel feature was NaN or infinite. If it is
        False everywhere nothing could be fitted: finite_K is False, mean_HM zero, and A_HKM the old one.
    candidate_HKM, objective_candidate_K: the optimised rows, kept or not, and their hard-code loss.
    trace_KT: the soft loss before each step.
    """

    A_HKM: Tensor
    mean_HM: Tensor
    accepted_K: Tensor
    objective_before_K: Tensor
    objective_after_K: Tensor
    finite_K: Tensor
    usable_B: Tensor
    candidate_HKM: Tensor
    objective_candidate_K: Tensor
    trace_KT: Tensor


def compute_dtype(x: Tensor) -> torch.dtype:
    """float64 stays; everything else is fitted in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_fit_inputs(
    x_BHNC: Tensor, anchors_HMC: Tensor, A_HKM: Tensor, *, top_k: int, lr: float, momentum: float, steps: int
) -> None:
    """Raise InputError for values a user can set wrong; assert the shapes that only code can get wrong."""
    assert x_BHNC.dim() == 4 and anchors_HMC.dim() == 3 and A_HKM.dim() == 3
    _, num_heads, num_tokens, channels = x_BHNC.shape
    assert anchors_HMC.shape == (num_heads, A_HKM.shape[2], channels) and A_HKM.shape[0] == num_heads
    if x_BHNC.shape[0] < 1 or A_HKM.shape[1] < 1 or A_HKM.shape[2] < 1:
        raise InputError(
            f"hash fit got {x_BHNC.shape[0]} samples, {A_HKM.shape[1]} bits and {A_HKM.shape[2]} anchors: "
            "it needs at least one of each"
        )
    if not 1 <= top_k <= num_tokens // 2:
        raise InputError(
            f"top_k={top_k} must lie in [1, {num_tokens // 2}], half of the {num_tokens} tokens: "
            "more would count a token as similar and dissimilar at once; change top_k or raise the image size"
        )
    if steps < 0:
        raise InputError(f"steps={steps} must be at least 0")
    if not 0 < lr <= torch.finfo(torch.float32).max:
        raise InputError(f"lr={lr} must be a finite number above 0")
    if not 0 <= momentum < 1:
        raise InputError(f"momentum={momentum} must lie in [0, 1)")


def distinguishes(top: Tensor, bottom: Tensor) -> Tensor:
    """Whether a row of similarities (..., top_k) tells tokens apart: its top_k-th largest exceeds its top_k-th
    smallest by more than rounding. Zero tokens and identical tokens do not.
    """
    return top.amin(dim=-1) > bottom.amax(dim=-1) + 16 * torch.finfo(top.dtype).eps


def nearest_and_farthest(x_PNC: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """The top_k most and the top_k least similar tokens of every token, by dot product, itself included.

    Returns the token indices (P, N, 2 * top_k), the most similar in the first half, and (P, N) True where they
    mean something (see `distinguishes`).
    """
    pairs, num_tokens, _ = x_PNC.shape
    x_PCN = x_PNC.transpose(1, 2)
    index_PNk = torch.empty(pairs, num_tokens, 2 * top_k, dtype=torch.int64, device=x_PNC.device)
    informative_PN = torch.empty(pairs, num_tokens, dtype=torch.bool, device=x_PNC.device)
    rows = max(1, min(num_tokens, SIMILARITIES_PER_CHUNK // (num_tokens * pairs)))
    for start in range(0, num_tokens, rows):
        chunk = slice(start, start + rows)
        similarity = torch.bmm(x_PNC[:, chunk], x_PCN)
        top = similarity.topk(top_k, dim=2, sorted=False)
        bottom = similarity.topk(top_k, dim=2, largest=False, sorted=False)
        index_PNk[:, chunk, :top_k] = top.indices
        index_PNk[:, chunk, top_k:] = bottom.indices
        informative_PN[:, chunk] = distinguishes(top.values, bottom.values)
    return index_PNk, informative_PN


def symmetric_targets(x_PNC: Tensor, top_k: int, scale: float) -> Tensor:
    """scale * (S0 + S0^T) over all P * N tokens as one block-diagonal CSR matrix with 32-bit indices.

    S0 holds +1 for the nearest and -1 for the farthest tokens of its row. Pairs are worked off in groups, so
    that sorting the entries stays in cache and takes little memory.
    """
    pairs, num_tokens, _ = x_PNC.shape
    device, dtype = x_PNC.device, x_PNC.dtype
    group = max(1, SIMILARITIES_PER_CHUNK // num_tokens**2)
    counts, columns, values = [], [], []
    for start in range(0, pairs, group):
        x_GNC = x_PNC[start : start + group]
        size = x_GNC.shape[0] * num_tokens
        index_GNk, informative_GN = nearest_and_farthest(x_GNC, top_k)
        index_GNk += torch.arange(0, size, num_tokens, device=device)[:, None, None]
        row = torch.arange(size, device=device).repeat_interleave(2 * top_k)
        column = index_GNk.flatten()
        value = informative_GN.to(dtype)[..., None] * scale * torch.ones(2 * top_k, dtype=dtype, device=device)
        value[..., top_k:] *= -1
        block = torch.sparse_coo_tensor(
            torch.stack([torch.cat([row, column]), torch.cat([column, row])]),
            value.flatten().repeat(2),
            (size, size),
            check_invariants=False,
        ).coalesce()  # a mutual neighbour becomes one entry of twice the value
        counts.append(torch.bincount(block.indices()[0], minlength=size))
        columns.append((block.indices()[1] + start * num_tokens).int())
        values.append(block.values())
    row_start = torch.zeros(pairs * num_tokens + 1, dtype=torch.int32, device=device)
    row_start[1:] = torch.cat(counts).cumsum(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            row_start,
            torch.cat(columns),
            torch.cat(values),
            (pairs * num_tokens, pairs * num_tokens),
            check_invariants=False,
        )


class HashObjective:
    """The loss of the next bit, -y^T S y / (N K) averaged over samples and heads, and its gradient.

    S = K S0 - sum over earlier bits of y_r y_r^T is never formed: y^T S y = K y^T S0 y - sum (y^T y_r)^2, with
    S0 sparse (2 * top_k entries per row). S is not symmetric but only its symmetric part counts.

    Features and codes are kept with tokens last: every product is then a (1, n) x (n, N) or (1, N) x (N, n)
    batch over the pairs, the fastest form on CPU.
    """

    def __init__(self, x_BHNC: Tensor, features_BHNM: Tensor, usable_B: Tensor, *, num_bits: int, top_k: int) -> None:
        self.num_samples, self.num_heads, self.num_tokens, _ = features_BHNM.shape
        self.pairs = self.num_heads * self.num_samples
        self.features_PMN = features_BHNM.permute(1, 0, 3, 2).contiguous().flatten(0, 1)
        self.targets = symmetric_targets(x_BHNC.transpose(0, 1).flatten(0, 1), top_k, 0.5 * num_bits)
        self.usable_P1 = usable_B.repeat(self.num_heads).unsqueeze(1).to(x_BHNC.dtype)
        self.codes_PKN = x_BHNC.new_zeros(self.pairs, num_bits, self.num_tokens)
        self.num_fitted = 0
        num_terms = usable_B.sum(dtype=torch.float64) * (self.num_heads * self.num_tokens * num_bits)
        self.scale = -1 / num_terms

    def project(self, a_HM: Tensor) -> Tensor:
        """k a, (P, N)."""
        a_HBM = a_HM.unsqueeze(1).expand(-1, self.num_samples, -1)
        return torch.bmm(a_HBM.reshape(self.pairs, 1, -1), self.features_PMN).squeeze(1)

    def residual_product(self, y_PN: Tensor) -> Tensor:
        """(S + S^T)/2 y, (P, N)."""
        product_PN = torch.mv(self.targets, y_PN.flatten()).view_as(y_PN)
        if self.num_fitted:
            earlier_PrN = self.codes_PKN[:, : self.num_fitted]
            overlap_P1r = torch.bmm(y_PN.unsqueeze(1), earlier_PrN.transpose(1, 2))
            product_PN.unsqueeze(1).baddbmm_(overlap_P1r, earlier_PrN, alpha=-1)
        return product_PN

    def soft(self, a_HM: Tensor) -> tuple[Tensor, Tensor]:
        """The loss with y = 2 sigmoid(k a) - 1, and its gradient (H, M), both still to be multiplied by `scale`."""
        y_PN = self.project(a_HM).sigmoid_().mul_(2).sub_(1)
        product_PN = self.residual_product(y_PN)
        loss = torch.dot(y_PN.flatten(), product_PN.flatten())
        # dy/d(k a) = (1 - y^2) / 2, and the 2 of d(y^T S y) cancels the half
        slope_PN = torch.ops.aten.tanh_backward(product_PN, y_PN)
        gradient_P1M = torch.bmm(slope_PN.unsqueeze(1), self.features_PMN.transpose(1, 2))
        return loss, gradient_P1M.view(self.num_heads, self.num_samples, -1).sum(dim=1)

    def codes(self, a_HM: Tensor) -> Tensor:
        """Codes (P, N) in {-1, +1}; 0 in samples that were left out."""
        return sign(self.project(a_HM)) * self.usable_P1

    def hard(self, code_PN: Tensor) -> Tensor:
        """The loss of codes. Every product is a small integer (or half one), so float64 sums are exact."""
        return (code_PN * self.residual_product(code_PN)).sum(dtype=torch.float64) * self.scale

    def append(self, code_PN: Tensor) -> None:
        """Take the codes of a bit that is fitted out of the residual S."""
        self.codes_PKN[:, self.num_fitted] = code_PN
        self.num_fitted += 1


@torch.no_grad()
def fit_hash(
    x_BHNC: Tensor, anchors_HMC: Tensor, A_HKM: Tensor, *, top_k: int, lr: float, momentum: float, steps: int
) -> HashFit:
    """Fit K hash functions per head, one after the other, by SGD with Nesterov momentum.

    Args:
        x_BHNC: L2-normalised tokens (zero tokens stay zero). Half precision is computed in float32.
        anchors_HMC: kernel anchors.
        A_HKM: hash functions to start from.
        top_k: tokens that count as similar, and as dissimilar, to each token; at most N / 2.
        lr, momentum, steps: SGD, per bit; steps=0 keeps the functions and measures them.

    Memory grows with B H N (top_k + K + M). No result is read by the host inside the loop. Equal inputs give
    equal results on CPU; on CUDA the sparse product may add in another order. Samples with NaN or infinity are
    left out (HashFit.usable_B); a bit that meets them while it is optimised keeps its old row (HashFit.finite_K).

    Raises:
        InputError: top_k outside [1, N / 2]; steps, lr or momentum out of range; no sample, bit or anchor.
    """
    check_fit_inputs(x_BHNC, anchors_HMC, A_HKM, top_k=top_k, lr=lr, momentum=momentum, steps=steps)
    dtype = compute_dtype(x_BHNC)
    x_BHNC, anchors_HMC, A_HKM = (t.detach().to(dtype) for t in (x_BHNC, anchors_HMC, A_HKM))
    with torch.autocast(x_BHNC.device.type, enabled=False):
        return _fit(x_BHNC, anchors_HMC, A_HKM, top_k, lr, momentum, steps)


def _fit(
    x_BHNC: Tensor, anchors_HMC: Tensor, A_HKM: Tensor, top_k: int, lr: float, momentum: float, steps: int
) -> HashFit:
    num_bits = A_HKM.shape[1]
    features_BHNM = kernel_features(x_BHNC, anchors_HMC)
    usable_B = x_BHNC.isfinite().flatten(1).all(dim=1) & features_BHNM.isfinite().flatten(1).all(dim=1)
    usable_B111 = usable_B[:, None, None, None]
    num_usable = usable_B.sum()
    x_BHNC = x_BHNC.masked_fill(~usable_B111, 0)
    features_BHNM = features_BHNM.masked_fill(~usable_B111, 0)
    mean_HM = features_BHNM.sum(dim=(0, 2)) / (num_usable.clamp_min(1) * x_BHNC.shape[2])
    features_BHNM = (features_BHNM - mean_HM[None, :, None, :]).masked_fill(~usable_B111, 0)
    objective = HashObjective(x_BHNC, features_BHNM, usable_B, num_bits=num_bits, top_k=top_k)

    fitted_HKM, candidate_HKM = A_HKM.clone(), A_HKM.clone()
    trace_KT = A_HKM.new_empty(num_bits, steps)
    columns: list[tuple[Tensor, ...]] = []
    for bit in range(num_bits):
        old_HM = A_HKM[:, bit]
        old_code_PN = objective.codes(old_HM)
        before = objective.hard(old_code_PN)
        a_HM, velocity_HM = old_HM.clone(), torch.zeros_like(old_HM)
        for step in range(steps):
            trace_KT[bit, step], gradient_HM = objective.soft(a_HM)
            gradient_HM.mul_(objective.scale)
            velocity_HM.mul_(momentum).add_(gradient_HM)
            a_HM.sub_(gradient_HM.add_(velocity_HM, alpha=momentum), alpha=lr)
        candidate_HKM[:, bit] = a_HM
        code_PN = objective.codes(a_HM)
        after = objective.hard(code_PN)
        trace_KT[bit] *= objective.scale
        is_finite = a_HM.isfinite().all() & trace_KT[bit].isfinite().all() & before.isfinite() & after.isfinite()
        is_better = is_finite & (after < before)
        fitted_HKM[:, bit] = torch.where(is_better, a_HM, old_HM)
        objective.append(torch.where(is_better, code_PN, old_code_PN))
        columns.append((is_better, before, torch.where(is_better, after, before), is_finite, after))
    accepted_K, before_K, after_K, finite_K, candidate_K = (torch.stack(c) for c in zip(*columns, strict=True))
    return HashFit(
        A_HKM=fitted_HKM,
        mean_HM=mean_HM,
        accepted_K=accepted_K,
        objective_before_K=before_K,
        objective_after_K=after_K,
        finite_K=finite_K,
        usable_B=usable_B,
        candidate_HKM=candidate_HKM,
        objective_candidate_K=candidate_K,
        trace_KT=trace_KT,
    )
