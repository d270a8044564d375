"""Measures of one attention against another, by hand."""

import pytest
import torch

from ecoformer.ops.closeness import relative_error, row_correlation, strongest_key_recall


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)[None, None]


def test_relative_error_by_hand():
    target = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 9.0]), target) == pytest.approx(1.0)
    assert relative_error(target, target) == 0
    zero = torch.zeros(2)
    assert relative_error(zero, zero) == 0
    assert relative_error(target, zero) == float("inf")


def test_recall_by_hand():
    target = rows([4.0, 3.0, 2.0, 1.0])
    assert strongest_key_recall(rows([9.0, 8.0, 1.0, 0.0]), target, 2) == 1.0
    assert strongest_key_recall(rows([9.0, 0.0, 1.0, 8.0]), target, 2) == 0.5
    # One place left for two keys that tie, one of which is wanted.
    assert strongest_key_recall(rows([9.0, 5.0, 5.0, 0.0]), target, 2) == pytest.approx(0.75)


@pytest.mark.parametrize("num_keys", [1, 3, 8])
def test_constant_weights_recall_by_chance(num_keys):
    target = torch.rand(2, 3, 5, 8)
    assert strongest_key_recall(torch.full((2, 3, 5, 8), 0.125), target, num_keys) == pytest.approx(num_keys / 8)


def test_correlation_by_hand():
    target = rows([1.0, 2.0, 3.0])
    assert row_correlation(rows([10.0, 20.0, 30.0]), target) == pytest.approx(1)
    assert row_correlation(rows([3.0, 2.0, 1.0]), target) == pytest.approx(-1)
    assert row_correlation(rows([0.3, 0.3, 0.3]), target) == 0
    both = rows([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    assert row_correlation(both, rows([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])) == pytest.approx(0)


def test_sharp_attention_recalls_itself():
    weights = torch.randn(1, 2, 65, 65).mul(8).softmax(dim=-1)
    assert strongest_key_recall(weights, weights, 8) == pytest.approx(1.0)
