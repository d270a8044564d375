"""Naive hash fit with the dense similarity matrix and autograd; the tests hold `fit_hash` against it.

Source: Liu et al., "EcoFormer: Energy-Saving Attention with Linear Complexity", NeurIPS 2022, section 4.2 (the
self-supervised hash functions).
Shapes: B batch, H heads, N tokens, C head channels, K code bits, M anchors. Memory grows with B H N^2.
"""

import torch
from torch import Tensor

from ecoformer.fit.similarity_fit import HashFit
from ecoformer.ops.ecoformer.naive import (
    hard_codes,
    hard_objective,
    kernel_features_reference,
    similarity_targets,
    soft_objective,
)
from ecoformer.ops.ecoformer.objective import check_fit_inputs, compute_dtype


@torch.enable_grad()
def fit_hash_reference(
    x_BHNC: Tensor, anchors_HMC: Tensor, A_HKM: Tensor, *, top_k: int, lr: float, momentum: float, steps: int
) -> HashFit:
    """The fit as the paper writes it; arguments, result and errors as in `fit_hash`.

    For each bit in turn: `steps` steps of SGD with Nesterov momentum on the soft objective, kept if the hard
    objective falls, then the residual S <- S - y y^T.
    """
    check_fit_inputs(x_BHNC, anchors_HMC, A_HKM, None, top_k, lr, momentum, steps)
    dtype = compute_dtype(x_BHNC)
    x_BHNC, anchors_HMC, A_HKM = (t.detach().to(dtype) for t in (x_BHNC, anchors_HMC, A_HKM))
    num_bits = A_HKM.shape[1]

    features_BHNM = kernel_features_reference(x_BHNC, anchors_HMC)
    all_finite = [t.isfinite().flatten(1).all(dim=1) for t in (x_BHNC, features_BHNM)]
    usable_B = torch.stack(all_finite).all(dim=0)
    features_BHNM = features_BHNM[usable_B]
    mean_HM = features_BHNM.mean(dim=(0, 2)) if usable_B.any() else torch.zeros_like(A_HKM[:, 0])
    features_BHNM = features_BHNM - mean_HM[None, :, None, :]
    S_BHNN = num_bits * similarity_targets(x_BHNC[usable_B], top_k)

    fitted_HKM, candidate_HKM = A_HKM.clone(), A_HKM.clone()
    before, after, candidates, traces = [], [], [], []
    accepted: list[bool] = []
    finite: list[bool] = []
    for bit in range(num_bits):
        objective_before = hard_objective(hard_codes(features_BHNM, A_HKM[:, bit]), S_BHNN, num_bits)
        a_HM = A_HKM[:, bit].clone().requires_grad_()
        optimizer = torch.optim.SGD([a_HM], lr=lr, momentum=momentum, nesterov=momentum > 0)
        trace = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = soft_objective(features_BHNM, S_BHNN, a_HM, num_bits)
            loss.backward()
            optimizer.step()
            trace.append(loss.detach())
        candidate_HKM[:, bit] = a_HM.detach()
        objective_candidate = hard_objective(hard_codes(features_BHNM, a_HM.detach()), S_BHNN, num_bits)
        numbers = (a_HM, torch.stack(trace), objective_before, objective_candidate)
        is_finite = all(bool(number.isfinite().all()) for number in numbers)
        is_better = is_finite and bool(objective_candidate < objective_before)
        if is_better:
            fitted_HKM[:, bit] = a_HM.detach()
        code_BHN = hard_codes(features_BHNM, fitted_HKM[:, bit])
        S_BHNN = S_BHNN - code_BHN[..., :, None] * code_BHN[..., None, :]
        before.append(objective_before)
        candidates.append(objective_candidate)
        after.append(objective_candidate if is_better else objective_before)
        accepted.append(is_better)
        finite.append(is_finite)
        traces.append(torch.stack(trace))
    return HashFit(
        A_HKM=fitted_HKM,
        mean_HM=mean_HM,
        accepted_K=torch.tensor(accepted, device=x_BHNC.device),
        objective_before_K=torch.stack(before),
        objective_after_K=torch.stack(after),
        finite_K=torch.tensor(finite, device=x_BHNC.device),
        usable_B=usable_B,
        candidate_HKM=candidate_HKM,
        objective_candidate_K=torch.stack(candidates),
        trace_KT=torch.stack(traces),
    )
