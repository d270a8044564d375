"""The hash fit on inputs that broke the published code: zero and constant tokens, NaN, half precision, odd shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ecoformer.errors import InputError
from ecoformer.fit.similarity_fit import HashFit, fit_hash
from ecoformer.fit.similarity_fit_naive import fit_hash_reference
from ecoformer.ops.ecoformer.codes import hash_codes, normalize
from ecoformer.ops.ecoformer.objective import HashObjective

FITS = {"fast": fit_hash, "reference": fit_hash_reference}
OPTIONS: dict[str, Any] = {"top_k": 4, "lr": 0.5, "momentum": 0.9, "steps": 15}


def make_inputs(
    shape: tuple[int, int, int, int] = (4, 2, 36, 8), num_bits: int = 4, num_anchors: int = 6
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x_BHNC = normalize(torch.randn(shape, generator=generator))
    A_HKM = torch.randn(shape[1], num_bits, num_anchors, generator=generator)
    return x_BHNC, x_BHNC[0, :, :num_anchors].clone(), A_HKM


def fields_of(fit: HashFit) -> dict[str, Tensor]:
    return dict(vars(fit))


def assert_equal(fit: HashFit, other: HashFit, *, without: tuple[str, ...] = ()) -> None:
    for name, value in fields_of(fit).items():
        if name not in without:
            assert torch.equal(value, getattr(other, name)), name


def assert_finite(fit: HashFit) -> None:
    for name, value in fields_of(fit).items():
        assert value.isfinite().all(), name


@pytest.mark.parametrize("implementation", FITS)
def test_a_sample_with_nan_or_infinity_is_left_out_and_named(implementation: str) -> None:
    x_BHNC, anchors_HMC, A_HKM = make_inputs()
    clean = FITS[implementation](x_BHNC[[0, 3]], anchors_HMC, A_HKM, **OPTIONS)
    broken_BHNC = x_BHNC.clone()
    broken_BHNC[1, 0, 5, 2] = float("nan")
    broken_BHNC[2, 1, 0, 0] = float("inf")
    fit = FITS[implementation](broken_BHNC, anchors_HMC, A_HKM, **OPTIONS)
    assert fit.usable_B.tolist() == [True, False, False, True]
    assert clean.accepted_K.any()
    assert torch.equal(fit.accepted_K, clean.accepted_K)
    torch.testing.assert_close(fit.A_HKM, clean.A_HKM, atol=1e-5, rtol=0)
    torch.testing.assert_close(fit.mean_HM, clean.mean_HM, atol=1e-6, rtol=0)
    torch.testing.assert_close(fit.objective_after_K, clean.objective_after_K, atol=1e-12, rtol=1e-12)
    assert_finite(fit)


@pytest.mark.parametrize("implementation", FITS)
@pytest.mark.parametrize("where", ["tokens", "anchors"])
def test_nothing_finite_leaves_the_hash_as_it_was(implementation: str, where: str) -> None:
    x_BHNC, anchors_HMC, A_HKM = make_inputs()
    (x_BHNC if where == "tokens" else anchors_HMC).fill_(float("nan"))
    fit = FITS[implementation](x_BHNC, anchors_HMC, A_HKM, **OPTIONS)
    assert not fit.usable_B.any() and not fit.finite_K.any() and not fit.accepted_K.any()
    assert torch.equal(fit.A_HKM, A_HKM) and not fit.mean_HM.any()


@pytest.mark.parametrize("implementation", FITS)
def test_a_bit_that_starts_from_nan_fails_alone(implementation: str) -> None:
    x_BHNC, anchors_HMC, A_HKM = make_inputs()
    A_HKM[1, 2, 0] = float("nan")
    fit = FITS[implementation](x_BHNC, anchors_HMC, A_HKM, **OPTIONS)
    assert fit.finite_K.tolist() == [True, True, False, True]
    assert not fit.accepted_K[2] and fit.accepted_K[3]
    assert torch.equal(fit.A_HKM[:, 2].nan_to_num(), A_HKM[:, 2].nan_to_num())


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_bit_that_meets_nan_while_it_is_optimised_keeps_its_old_row(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    inputs = make_inputs()
    healthy = fit_hash(*inputs, **OPTIONS)
    soft = HashObjective.soft
    calls: list[None] = []

    def failing_soft(self: HashObjective, a_HM: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient_HM = soft(self, a_HM)
        calls.append(None)
        if len(calls) == OPTIONS["steps"] + 5:  # the second bit's fifth step
            (loss if broken == "loss" else gradient_HM).fill_(float("nan"))
        return loss, gradient_HM

    monkeypatch.setattr(HashObjective, "soft", failing_soft)
    fit = fit_hash(*inputs, **OPTIONS)
    assert healthy.accepted_K.all()
    assert fit.finite_K.tolist() == [True, False, True, True]
    assert fit.accepted_K.tolist() == [True, False, True, True]
    assert torch.equal(fit.A_HKM[:, 0], healthy.A_HKM[:, 0])
    assert torch.equal(fit.A_HKM[:, 1], inputs[2][:, 1])
    assert fit.objective_after_K[1] == fit.objective_before_K[1]
    assert_finite_codes(inputs, fit)


def assert_finite_codes(inputs: tuple[Tensor, Tensor, Tensor], fit: HashFit) -> None:
    codes = hash_codes(inputs[0], inputs[1], fit.A_HKM, fit.mean_HM)
    assert set(codes.unique().tolist()) == {-1.0, 1.0}


def test_zero_tokens_carry_no_targets_and_give_no_nan() -> None:
    x_BHNC, anchors_HMC, A_HKM = (tensor.double() for tensor in make_inputs())
    x_BHNC[:, :, 7:11] = 0
    x_BHNC[2, 0] = 0
    fit, reference = (f(x_BHNC, anchors_HMC, A_HKM, **OPTIONS) for f in FITS.values())
    assert_finite(fit)
    assert fit.accepted_K.any() and torch.equal(fit.accepted_K, reference.accepted_K)
    torch.testing.assert_close(fit.A_HKM, reference.A_HKM, atol=1e-9, rtol=0)
    torch.testing.assert_close(fit.objective_after_K, reference.objective_after_K, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("constant", [slice(0, 1), slice(1, 3), slice(None)], ids=["first", "some", "all"])
def test_constant_images(constant: slice) -> None:
    x_BHNC, anchors_HMC, A_HKM = make_inputs()
    x_BHNC[constant] = x_BHNC[constant, :, :1]
    if constant.start == 0 or constant == slice(None):
        anchors_HMC = x_BHNC[0, :, : anchors_HMC.shape[1]].clone()
    fit = fit_hash(x_BHNC, anchors_HMC, A_HKM, **OPTIONS)
    assert_finite(fit)
    assert fit.usable_B.all() and fit.finite_K.all()
    if constant == slice(None):  # no token differs from another: no targets, only the bits' decorrelation
        assert fit.objective_before_K[0] == 0 and not fit.accepted_K[0]
    assert_equal(fit, fit_hash(x_BHNC, anchors_HMC, A_HKM, **OPTIONS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    inputs = [tensor.to(dtype) for tensor in make_inputs()]
    fit = fit_hash(*inputs, **OPTIONS)
    assert fit.A_HKM.dtype == fit.mean_HM.dtype == torch.float32
    assert_equal(fit, fit_hash(*(tensor.float() for tensor in inputs), **OPTIONS))


def test_autocast_does_not_reach_the_fit() -> None:
    inputs = make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        fit = fit_hash(*inputs, **OPTIONS)
    assert_equal(fit, fit_hash(*inputs, **OPTIONS))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_pure_and_deterministic(mode: Any) -> None:
    inputs = make_inputs()
    expected = fit_hash(*inputs, **OPTIONS)
    before = [tensor.clone() for tensor in inputs]
    random_state = torch.get_rng_state()
    with mode():
        fit = fit_hash(*(tensor.clone().requires_grad_() for tensor in inputs), **OPTIONS)
    assert_equal(fit, expected)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, before, strict=True))
    assert not any(value.requires_grad for value in fields_of(fit).values())


@pytest.mark.parametrize(
    ("shape", "num_bits", "num_anchors", "top_k"),
    [((1, 1, 2, 1), 1, 1, 1), ((2, 8, 4, 4), 3, 2, 2), ((1, 3, 9, 5), 20, 9, 4), ((40, 2, 50, 4), 2, 3, 5)],
    ids=str,
)
def test_small_and_many_headed_shapes(
    shape: tuple[int, int, int, int], num_bits: int, num_anchors: int, top_k: int
) -> None:
    inputs = [tensor.double() for tensor in make_inputs(shape, num_bits, num_anchors)]
    options = OPTIONS | {"top_k": top_k}
    fit, reference = (f(*inputs, **options) for f in FITS.values())
    assert fit.A_HKM.shape == (shape[1], num_bits, num_anchors) and fit.mean_HM.shape == (shape[1], num_anchors)
    assert torch.equal(fit.accepted_K, reference.accepted_K)
    torch.testing.assert_close(fit.A_HKM, reference.A_HKM, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("implementation", FITS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": -1}, "steps=-1 must be at least 0"),
        ({"lr": 0.0}, "lr=0.0 must be a finite number above 0"),
        ({"lr": float("nan")}, "lr=nan must be a finite number above 0"),
        ({"lr": float("inf")}, "lr=inf must be a finite number above 0"),
        ({"momentum": 1.0}, r"momentum=1.0 must lie in \[0, 1\)"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(implementation: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FITS[implementation](*make_inputs(), **(OPTIONS | change))


def test_an_empty_batch_is_refused() -> None:
    x_BHNC, anchors_HMC, A_HKM = make_inputs()
    with pytest.raises(InputError, match="hash fit got 0 samples"):
        fit_hash(x_BHNC[:0], anchors_HMC, A_HKM, **OPTIONS)
