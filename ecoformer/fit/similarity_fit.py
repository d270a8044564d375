"""Fit the hash functions of kernelised binary codes, with no N x N matrix.

Source: Liu et al., "EcoFormer: Energy-Saving Attention with Linear Complexity", NeurIPS 2022, section 4.2. The
naive form is `fit_hash_reference`; both give the same bits.

Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors, T steps; P = H * B (head, sample) pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ecoformer.ops.ecoformer.codes import kernel_features
from ecoformer.ops.ecoformer.objective import HashObjective, check_fit_inputs, compute_dtype


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


@torch.no_grad()
def fit_hash(
    x_BHNC: Tensor,
    anchors_HMC: Tensor,
    A_HKM: Tensor,
    mask_BN: Tensor | None = None,
    *,
    top_k: int,
    lr: float,
    momentum: float,
    steps: int,
) -> HashFit:
    """Fit K hash functions per head, one after the other, by SGD with Nesterov momentum.

    Args:
        x_BHNC: L2-normalised tokens (zero tokens stay zero). Half precision is computed in float32.
        anchors_HMC: kernel anchors.
        A_HKM: hash functions to start from.
        mask_BN: True where a token takes part; None: all do. Samples with fewer than 2 * top_k are left out.
        top_k: tokens that count as similar, and as dissimilar, to each token; at most N / 2.
        lr, momentum, steps: SGD, per bit; steps=0 keeps the functions and measures them.

    Memory grows with B H N (top_k + K + M). No result is read by the host inside the loop over the steps. Equal inputs
    give equal results on CPU; on CUDA the sparse product may add in another order. Samples with NaN or infinity are
    left out (HashFit.usable_B); a bit that meets them while it is optimised keeps its old row (HashFit.finite_K).

    Raises:
        InputError: top_k outside [1, N / 2], with N the most tokens of a sample; steps, lr or momentum out of range; no
            sample, bit or anchor.
    """
    check_fit_inputs(x_BHNC, anchors_HMC, A_HKM, mask_BN, top_k, lr, momentum, steps)
    dtype = compute_dtype(x_BHNC)
    x_BHNC, anchors_HMC, A_HKM = (t.detach().to(dtype) for t in (x_BHNC, anchors_HMC, A_HKM))
    with torch.autocast(x_BHNC.device.type, enabled=False):
        features_BHNM = kernel_features(x_BHNC, anchors_HMC, mask_BN)
        finite = [t.isfinite().flatten(1).all(dim=1) for t in (x_BHNC, features_BHNM)]
        usable_B = torch.stack(finite).all(dim=0)
        if mask_BN is not None:
            usable_B = usable_B & (mask_BN.sum(dim=1) >= 2 * top_k)
        usable_BN = usable_B[:, None].expand(-1, x_BHNC.shape[2]) if mask_BN is None else usable_B[:, None] & mask_BN
        unusable_B1N1 = ~usable_BN[:, None, :, None]
        features_BHNM = features_BHNM.masked_fill(unusable_B1N1, 0)
        mean_HM = features_BHNM.sum(dim=(0, 2)) / usable_BN.sum().clamp_min(1)
        features_BHNM = (features_BHNM - mean_HM[None, :, None, :]).masked_fill(unusable_B1N1, 0)
        x_BHNC = x_BHNC.masked_fill(unusable_B1N1, 0)
        objective = HashObjective(
            x_BHNC, features_BHNM, usable_BN, num_bits=A_HKM.shape[1], top_k=top_k, masked=mask_BN is not None
        )
        return _fit(objective, mean_HM, usable_B, A_HKM, lr, momentum, steps)


def _fit(
    objective: HashObjective, mean_HM: Tensor, usable_B: Tensor, A_HKM: Tensor, lr: float, momentum: float, steps: int
) -> HashFit:
    num_bits = A_HKM.shape[1]
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
        candidate = objective.hard(code_PN)
        trace_KT[bit] *= objective.scale
        is_finite = a_HM.isfinite().all() & trace_KT[bit].isfinite().all() & before.isfinite() & candidate.isfinite()
        is_better = is_finite & (candidate < before)
        fitted_HKM[:, bit] = torch.where(is_better, a_HM, old_HM)
        kept_code_PN = torch.where(is_better, code_PN, old_code_PN)
        objective.append(kept_code_PN)
        columns.append((is_better, before, torch.where(is_better, candidate, before), is_finite, candidate))
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
