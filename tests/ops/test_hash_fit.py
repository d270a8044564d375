"""The hash fit against two golden cases and against its naive form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ecoformer.errors import InputError
from ecoformer.fit.similarity_fit import HashFit, fit_hash
from ecoformer.fit.similarity_fit_naive import fit_hash_reference
from ecoformer.ops.ecoformer import similarity_targets as targets_module
from ecoformer.ops.ecoformer.codes import hash_codes, kernel_features, normalize
from ecoformer.ops.ecoformer.naive import similarity_targets, soft_objective
from ecoformer.ops.ecoformer.objective import HashObjective
from ecoformer.ops.ecoformer.similarity_targets import symmetric_targets

GOLDEN = Path(__file__).parent / "golden"
FITS = {"fast": fit_hash, "reference": fit_hash_reference}
SHAPES = [(4, 1, 64, 16), (3, 2, 49, 8), (2, 5, 36, 8), (1, 1, 20, 4)]


def make_inputs(
    shape: tuple[int, int, int, int], num_bits: int = 8, num_anchors: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    x_BHNC = normalize(torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
    A_HKM = torch.randn(shape[1], num_bits, num_anchors, generator=generator, dtype=torch.float64).to(dtype)
    return x_BHNC, x_BHNC[0, :, 3 : 3 + num_anchors].clone(), A_HKM


def assert_same(fit: HashFit, reference: HashFit, tolerance: float) -> None:
    assert torch.equal(fit.accepted_K, reference.accepted_K)
    assert torch.equal(fit.finite_K, reference.finite_K)
    assert torch.equal(fit.usable_B, reference.usable_B)
    for name in ("A_HKM", "mean_HM", "candidate_HKM", "trace_KT"):
        torch.testing.assert_close(getattr(fit, name), getattr(reference, name), atol=tolerance, rtol=tolerance)
    for name in ("objective_before_K", "objective_after_K", "objective_candidate_K"):
        torch.testing.assert_close(getattr(fit, name), getattr(reference, name), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", ["hash_train", "hash_train_highlr"])
@pytest.mark.parametrize("implementation", FITS)
def test_golden(name: str, implementation: str) -> None:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as archive:
        case = {key: torch.from_numpy(archive[key]) for key in archive.files}
    top_k = int(case["hyper"][6])
    lr, momentum, steps = case["lr_momentum_iters"].tolist()
    fit = FITS[implementation](
        case["X"], case["anchor"][0], case["A_init"], top_k=top_k, lr=lr, momentum=momentum, steps=int(steps)
    )
    expected = {
        "A_HKM": case["A_final"],
        "mean_HM": case["mvec"][0, :, 0],
        "candidate_HKM": case["a_optim"].transpose(0, 1),
        "trace_KT": case["loss_trace"].float(),
        "objective_before_K": case["loss_previous"],
        "objective_candidate_K": case["loss_current"],
    }
    for field, value in expected.items():
        torch.testing.assert_close(getattr(fit, field), value, atol=1e-5, rtol=0)
    assert torch.equal(fit.accepted_K, case["accepted"])
    assert fit.accepted_K.all() if name == "hash_train_highlr" else not fit.accepted_K.any()
    codes = hash_codes(case["X"], case["anchor"][0], fit.A_HKM, fit.mean_HM)
    assert torch.equal(codes, case["codes"].float())


@pytest.mark.parametrize("lr", [5e-4, 5e-2, 5.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_same_as_the_reference(shape: tuple[int, int, int, int], lr: float) -> None:
    inputs = make_inputs(shape)
    options: dict[str, Any] = {"top_k": 5, "lr": lr, "momentum": 0.9, "steps": 30}
    fit, reference = fit_hash(*inputs, **options), fit_hash_reference(*inputs, **options)
    assert_same(fit, reference, 1e-9)
    x_BHNC, anchors_HMC, _ = inputs
    codes, expected = (hash_codes(x_BHNC, anchors_HMC, f.A_HKM, f.mean_HM) for f in (fit, reference))
    assert torch.equal(codes, expected)
    assert lr < 5e-2 or fit.accepted_K.any()


@pytest.mark.parametrize("num_earlier", [0, 1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradient_equals_autograd(shape: tuple[int, int, int, int], num_earlier: int) -> None:
    x_BHNC, anchors_HMC, A_HKM = make_inputs(shape)
    num_bits = A_HKM.shape[1]
    features_BHNM = kernel_features(x_BHNC, anchors_HMC)
    features_BHNM = features_BHNM - features_BHNM.mean(dim=(0, 2))[None, :, None]
    usable_BN = torch.ones(shape[0], shape[2], dtype=torch.bool)
    objective = HashObjective(x_BHNC, features_BHNM, usable_BN, num_bits=num_bits, top_k=4)
    S_BHNN = num_bits * similarity_targets(x_BHNC, 4)
    for bit in range(num_earlier):
        code_PN = objective.codes(A_HKM[:, bit])
        objective.append(code_PN)
        code_BHN = code_PN.view(shape[1], shape[0], shape[2]).transpose(0, 1)
        S_BHNN = S_BHNN - code_BHN[..., None] * code_BHN[..., None, :]
    a_HM = A_HKM[:, -1].clone().requires_grad_()
    expected = soft_objective(features_BHNM, S_BHNN, a_HM, num_bits)
    expected.backward()
    loss, gradient_HM = (value * objective.scale for value in objective.soft(a_HM.detach()))
    torch.testing.assert_close(loss, expected.detach(), atol=1e-12, rtol=1e-12)
    assert a_HM.grad is not None and a_HM.grad.abs().max() > 1e-6
    torch.testing.assert_close(gradient_HM, a_HM.grad, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("implementation", FITS)
@pytest.mark.parametrize("top_k", [0, 11, 30])
def test_top_k_outside_half_the_tokens_is_refused(implementation: str, top_k: int) -> None:
    inputs = make_inputs((1, 1, 20, 4))
    with pytest.raises(InputError, match=rf"top_k={top_k} must lie in \[1, 10\]"):
        FITS[implementation](*inputs, top_k=top_k, lr=1e-3, momentum=0.9, steps=2)


@pytest.mark.parametrize("chunk", [1, 300, 2000])
def test_chunks_of_rows_and_of_samples_change_nothing(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    x_BHNC, _, _ = make_inputs((3, 2, 25, 8))
    x_PNC = x_BHNC.transpose(0, 1).flatten(0, 1)
    whole = symmetric_targets(x_PNC, 4, 1.5).to_dense()
    monkeypatch.setattr(targets_module, "SIMILARITIES_PER_CHUNK", chunk)
    assert torch.equal(symmetric_targets(x_PNC, 4, 1.5).to_dense(), whole)
    S0_PNN = similarity_targets(x_BHNC, 4).transpose(0, 1).flatten(0, 1)
    assert torch.equal(whole, torch.block_diag(*(1.5 * (S0_PNN + S0_PNN.transpose(1, 2)))))
