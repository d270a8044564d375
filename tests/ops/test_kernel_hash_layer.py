"""The whole layer on CPU equals projections around the naive forms: outputs, all gradients, at odd shapes."""

import pytest
import torch
import torch.nn.functional as F

from ecoformer.nn.heads import join_heads, split_heads
from ecoformer.ops.ecoformer import columns_forward as token_columns
from ecoformer.ops.ecoformer import kernel_hash_attention
from ecoformer.ops.ecoformer.codes import normalize, straight_through_sign
from ecoformer.ops.ecoformer.columns import kernel_hash_layer
from ecoformer.ops.ecoformer.naive import hash_attention_reference, pre_codes_reference

SHAPES = [(1, 1, 7, 5, 3, 4), (2, 2, 49, 32, 25, 16), (3, 5, 33, 13, 7, 9), (2, 3, 3, 2, 1, 1)]
NUMERATORS = ["own_token", "kernel"]


def shape_id(shape):
    return "B{}-H{}-N{}-C{}-M{}-K{}".format(*shape)


def reference(x, *tensors, numerator):
    linears, state = [tensors[0:2], tensors[2:4], tensors[4:6]], tensors[6:]
    num_heads = state[0].shape[0]
    qk, v = (split_heads(F.linear(x, *linear), num_heads) for linear in linears[:2])
    codes = straight_through_sign(pre_codes_reference(normalize(qk), *state))
    return F.linear(join_heads(hash_attention_reference(codes, codes, v, numerator)), *linears[2])


def layer(x, *tensors, numerator):
    linears = tensors[0:2], tensors[2:4], tensors[4:6]
    return kernel_hash_layer(x, *linears, tensors[6:], numerator)


def random_case(shape, dtype=torch.float64, bias=True):
    B, H, N, C, M, K = shape
    D = H * C
    x = torch.randn(B, N, D, dtype=dtype)
    linears = []
    for _ in range(3):
        linears += [torch.randn(D, D, dtype=dtype) / D**0.5, torch.randn(D, dtype=dtype) if bias else None]
    tokens = normalize(split_heads(F.linear(x, *linears[:2]), H))
    anchors = tokens[0, :, torch.randperm(N)[:M]].contiguous()
    # As wide as the pre-codes are to both sides of 1: the straight-through gradient stops there.
    state = anchors, 3 * torch.randn(H, K, M, dtype=dtype), torch.rand(H, M, dtype=dtype)
    return [x, *linears, *state]


def output_and_gradients(function, case, numerator):
    leaves = [t if t is None or i > 6 else t.clone().requires_grad_() for i, t in enumerate(case)]
    out = function(*leaves, numerator=numerator)
    (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves[:7] if leaf is not None)]


def assert_equals_the_naive_forms(case, numerator):
    mine, naive = (output_and_gradients(function, case, numerator) for function in (layer, reference))
    for found, expected in zip(mine, naive, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        assert torch.equal(layer(*case, numerator=numerator), mine[0])
    return mine


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("numerator", NUMERATORS)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_equals_the_naive_forms(shape, numerator):
    assert_equals_the_naive_forms(random_case(shape), numerator)


@pytest.mark.parametrize("empty", [(0, 9, 10), (2, 0, 10)])
@pytest.mark.parametrize("numerator", NUMERATORS)
def test_no_samples_and_no_tokens(numerator, empty):
    case = random_case((2, 2, 9, 5, 4, 6))
    case[0] = case[0].new_empty(empty)
    assert_equals_the_naive_forms(case, numerator)


@pytest.mark.parametrize("form", ["layer", "core"])
@pytest.mark.parametrize("numerator", NUMERATORS)
def test_gradients_are_differentiated_again(numerator, form):
    """Hessian-vector products and gradient penalties; `torch.autograd.grad` was silent about what it left out."""
    case = random_case((2, 2, 9, 5, 4, 6))
    case[7] = case[7] + 0.1  # at a distance of 0 the two round to either side of where distances are cut off
    function = layer if form == "layer" else in_torch
    found = []
    for each in (function, reference):
        leaves = [t.clone().requires_grad_(i in (0, 1, 3, 5)) for i, t in enumerate(case)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        first = torch.autograd.grad(each(*leaves, numerator=numerator).sin().sum(), wanted, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))
    for mine, naive in zip(*found, strict=True):
        torch.testing.assert_close(mine, naive, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", ["layer", "core"])
@pytest.mark.parametrize("shared", ["a layer twice", "tied weights", "hook"])
def test_gradients_with_a_graph_are_those_without(shared, form):
    """Where one input hangs on another, the graph behind the inputs is walked once."""
    case, function = random_case((2, 2, 9, 5, 4, 6)), layer if form == "layer" else in_torch
    found = []
    for create_graph in (False, True):
        leaves = [t.clone().requires_grad_(i in (0, 1, 3, 5)) for i, t in enumerate(case)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        if shared == "tied weights":
            leaves[3] = leaves[1]
            wanted = [leaves[i] for i in (0, 1, 5)]
        if shared == "hook":
            leaves[1].register_hook(lambda grad: 10 * grad)
        out = function(*leaves, numerator="own_token")
        if shared == "a layer twice":
            out = function(out, *leaves[1:], numerator="own_token")
        found.append(torch.autograd.grad(out.sin().sum(), wanted, create_graph=create_graph))
    for with_graph, without in zip(*reversed(found), strict=True):
        torch.testing.assert_close(with_graph, without, rtol=1e-9, atol=1e-10)


def in_torch(x, *tensors, numerator):
    linears, state = [tensors[0:2], tensors[2:4], tensors[4:6]], tensors[6:]
    qk, v = (split_heads(F.linear(x, *linear), state[0].shape[0]) for linear in linears[:2])
    return F.linear(join_heads(kernel_hash_attention(qk, v, *state, numerator)), *linears[2])


@pytest.mark.parametrize("numerator", NUMERATORS)
@pytest.mark.parametrize("num_heads", [1, 3])
def test_linear_layers_without_biases(num_heads, numerator):
    assert_equals_the_naive_forms(random_case((2, num_heads, 9, 5, 4, 6), bias=False), numerator)


@pytest.mark.parametrize("numerator", NUMERATORS)
@pytest.mark.parametrize("zeros", [slice(3, 4), slice(None)], ids=["some", "all"])
def test_zero_tokens(numerator, zeros):
    case = random_case((3, 2, 9, 5, 4, 6), bias=False)
    case[0][1, zeros] = 0
    assert not assert_equals_the_naive_forms(case, numerator)[1][1, zeros].isnan().any()


@pytest.mark.parametrize("numerator", NUMERATORS)
@pytest.mark.parametrize("zero_token", [False, True])
@pytest.mark.parametrize("num_heads", [1, 3])
def test_groups_of_samples_and_pieces_of_tokens_change_nothing(num_heads, numerator, zero_token, monkeypatch):
    case = random_case((5, num_heads, 300, 4, 7, 6), bias=False)
    if zero_token:
        case[0][1, 3] = 0
    whole = output_and_gradients(layer, case, numerator)
    pieces = set()
    over_pieces = token_columns.ColumnLayer.over_pieces
    monkeypatch.setattr(
        token_columns.ColumnLayer, "over_pieces", lambda self, x: pieces.add(self.pieces) or over_pieces(self, x)
    )
    monkeypatch.setattr(token_columns, "PIECE_TOKENS", 120)
    monkeypatch.setattr(token_columns, "GROUP_BYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for found, expected in zip(output_and_gradients(layer, case, numerator), whole, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    assert pieces == {3}


@pytest.mark.parametrize("numerator", NUMERATORS)
def test_float32_is_as_close_to_float64_as_the_attention_between_linear_layers(numerator):
    case = random_case((2, 2, 784, 32, 25, 16))
    case[8] /= 100  # the published fit's size
    exact = layer(*case, numerator=numerator)
    case = [t.float() for t in case]
    num_heads = case[7].shape[0]

    def in_turn(x, *tensors, numerator):
        qk, v = (split_heads(F.linear(x, *tensors[i : i + 2]), num_heads) for i in (0, 2))
        return F.linear(join_heads(kernel_hash_attention(qk, v, *tensors[6:], numerator)), *tensors[4:6])

    # Codes near zero may flip, so not every token is compared.
    mine, theirs = ((f(*case, numerator=numerator) - exact).abs().quantile(0.95) for f in (layer, in_turn))
    assert mine < 1e-6
    assert mine < 3 * theirs


def test_tokens_that_equal_every_anchor_stay_finite():
    x, *tensors, anchors, A, mean = random_case((2, 2, 50, 8, 5, 4), torch.float32)
    x = x[:, :1].expand_as(x).contiguous()
    anchors = normalize(split_heads(F.linear(x, *tensors[:2]), 2))[0, :, :5].contiguous()
    for found in output_and_gradients(layer, [x, *tensors, anchors, A, mean], "own_token"):
        assert found.isfinite().all()


def test_a_nan_in_the_queries_alone_reaches_the_output():
    case = random_case((2, 2, 9, 5, 4, 6))
    case[1][0, 0] = float("nan")
    with torch.no_grad():
        assert layer(*case, numerator="own_token").isnan().all()


def test_keeps_only_its_inputs_for_the_backward_pass():
    case = random_case((2, 2, 50, 8, 5, 4))
    case[0].requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        layer(*case, numerator="kernel")
    assert sum(sizes) == sum(t.numel() for t in case)


@pytest.mark.parametrize("needed", [0, 1, 6])
def test_only_what_needs_a_gradient_gets_one(needed):
    case = random_case((1, 2, 9, 4, 3, 5))
    case[needed].requires_grad_()
    layer(*case, numerator="kernel").sum().backward()
    assert [t.grad is not None for t in case] == [i == needed for i in range(len(case))]


def test_an_empty_batch_gives_an_empty_output():
    x, *tensors = random_case((2, 2, 9, 4, 3, 5))
    assert layer(x[:0], *tensors, numerator="kernel").shape == (0, 9, 8)


def test_a_backward_pass_within_autocast_computes_as_outside():
    case = random_case((2, 2, 33, 8, 5, 16), torch.float32)
    found = []
    for inside in (False, True):
        x = case[0].clone().requires_grad_()
        loss = layer(x, *case[1:], numerator="kernel").square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            loss.backward()
        found.append(x.grad)
    assert torch.equal(*found)


def test_tokens_whose_inverse_square_is_beyond_float32():
    case = random_case((2, 2, 9, 4, 3, 5), bias=False)
    case[0][0, 3] *= 1e-19
    narrow = [None if t is None else t.float() for t in case]
    found, wide = (output_and_gradients(layer, c, "kernel") for c in (narrow, case))
    for mine, expected in zip(found, wide, strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=1e-4, atol=1e-4)
