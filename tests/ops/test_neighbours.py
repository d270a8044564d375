"""Weights of neighbours: the quadratic form, masks, gradients, a case by hand, and what they are for."""

import pytest
import torch
from kind_cases import TOKENS

from ecoformer.kinds import BUILDERS, make_spec
from ecoformer.nn.projections import Projections
from ecoformer.ops.codes.folded import Affine, distilled_attention
from ecoformer.ops.codes.forms import NEAR, Shifts
from ecoformer.ops.codes.naive import distilled_attention_reference
from ecoformer.ops.codes.neighbours import add_neighbours, neighbour_sums

SHAPES = [(2, 21, 12, 3, 6, 2), (1, 1, 8, 1, 4, 1), (3, 5, 10, 5, 1, 7), (2, 7, 16, 2, 16, 1)]
RANGE = (-5, 4)


def case(B, N, D, H, K, R, dtype=torch.float64):
    def affine(rows, size=1.0):
        return Affine(size * torch.randn(rows, D, dtype=dtype) / D**0.5, torch.randn(rows, dtype=dtype))

    near = H * (2 * R + 1)
    return torch.randn(B, N, D, dtype=dtype), affine(2 * H * K + near, 4.0), affine(D), affine(D), near


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_quadratic_form(shape, dtype):
    x, codes, value, proj, near = case(*shape, dtype=dtype)
    floor = torch.rand(shape[3], dtype=dtype) + 0.1
    expected = distilled_attention_reference(x, codes, value, proj, None, floor, exponents=RANGE, neighbours=near)
    for needs_gradient in (False, True):
        x.requires_grad_(needs_gradient)
        found = distilled_attention(x, codes, value, proj, None, floor, form=Shifts(*RANGE), neighbours=near)
        torch.testing.assert_close(found.detach(), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_pass_straight_through_the_rounding_within_the_range(shape):
    x, codes, value, proj, near = case(*shape)
    heads = shape[3]
    floor = torch.rand(heads, dtype=x.dtype) + 0.1
    leaves = [x, codes.weight, codes.bias, value.weight, value.bias, proj.weight, proj.bias, floor]
    for leaf in leaves:
        leaf.requires_grad_()
    out = distilled_attention(x, codes, value, proj, None, floor, form=Shifts(*RANGE), neighbours=near)
    found = torch.autograd.grad(out.square().sum(), leaves)

    def powers(y, low, high):
        inside = ((y >= low) & (y <= high)).double()
        return 2 ** (y.detach().round().clip(low, high) + inside * (y - y.detach()))

    y_codes, y_near = codes(x).split([len(codes.weight) - near, near], dim=-1)
    q, k = powers(y_codes, *RANGE).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    near_BHNO = powers(y_near, NEAR.low, NEAR.high).unflatten(-1, (heads, -1)).transpose(1, 2)
    weights = q @ k.mT + floor[:, None, None]
    for o in range(near_BHNO.shape[-1]):
        offset = o - near_BHNO.shape[-1] // 2
        ones = torch.ones_like(weights[0, 0]).tril(offset).triu(offset)
        weights = weights + near_BHNO[..., o : o + 1] * ones
    v = value(x).unflatten(-1, (heads, -1)).transpose(1, 2)
    expected = proj((weights / weights.sum(-1, keepdim=True) @ v).transpose(1, 2).flatten(2))
    for mine, theirs in zip(found, torch.autograd.grad(expected.square().sum(), leaves), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_by_hand():
    near = torch.tensor([[[[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]]]])  # two tokens; before, itself, after
    torch.testing.assert_close(
        neighbour_sums(near, torch.tensor([[[[1.0], [10.0]]]])), torch.tensor([[[[42.0], [168.0]]]])
    )
    found = add_neighbours(torch.zeros(1, 1, 2, 2), near)
    torch.testing.assert_close(found, torch.tensor([[[[2.0, 4.0], [8.0, 16.0]]]]))


def test_a_head_that_looks_at_the_token_before_is_found():
    """A query is the key of the token before, whatever that is: no code of so few features says which one it is."""
    x_BND = torch.randn(32, TOKENS, 12)
    x_BND = torch.cat([x_BND, x_BND.roll(1, dims=1)], dim=-1)
    linears = {name: torch.nn.Linear(24, 24) for name in ("query", "key", "value", "proj")}
    for name, half in (("query", slice(12, 24)), ("key", slice(0, 12))):
        torch.nn.init.zeros_(linears[name].weight)
        torch.nn.init.zeros_(linears[name].bias)
        linears[name].weight.data[:12, half] = 3 * torch.eye(12)
    source = Projections(where="layer", dim=24, num_heads=1, proj_drop=0.0, parts={}, **linears)
    errors = []
    for neighbours in (0, 1):
        spec = make_spec("distilled", {"num_features": 4, "fit_steps": 100, "neighbours": neighbours})
        layer = BUILDERS[type(spec)].from_projections(source, spec)
        errors.append(layer.fit_hash(x_BND, torch.Generator().manual_seed(0)).objective_after)
    assert errors[1] < 0.5 * errors[0], errors
