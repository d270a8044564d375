"""What every attention kind must hold, for each registered spec."""

import math

import pytest
import torch
from kind_cases import SPECS, TOKENS, build

from ecoformer import InputError
from ecoformer.fit.contract import FittableAttention
from ecoformer.kinds import BUILDERS, make_spec
from ecoformer.nn.heads import join_heads, split_heads
from ecoformer.nn.projections import read_projections
from ecoformer.nn.specs import SPECS as KINDS
from ecoformer.nn.specs import split_setting

WEIGHTED = [spec for spec in SPECS if BUILDERS[type(spec)].shows_weights]
FITTED = [spec for spec in SPECS if issubclass(BUILDERS[type(spec)], FittableAttention)]
# Not by design: the published numerator, and a query whose channels are all negative.
UNNORMALISED = [s for s in SPECS if getattr(s, "numerator", "") == "own_token" or s.name == "relu_linear"]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_spec_is_read_back_from_its_setting(spec):
    assert make_spec(*split_setting(spec.setting())) == spec


@pytest.mark.parametrize("spec", WEIGHTED, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_output_is_the_weighted_sum_of_values(spec, bias):
    module, linears = build(spec, bias=bias)
    x = torch.randn(2, TOKENS, 12)
    v = split_heads(linears["value"](x), 3)
    expected = linears["proj"](join_heads(module.attention_weights(x) @ v))
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [spec for spec in WEIGHTED if spec not in UNNORMALISED], ids=str)
def test_normalised_kinds_have_weights_that_sum_to_one(spec):
    module, _ = build(spec)
    weights = module.attention_weights(torch.randn(2, TOKENS, 12))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, TOKENS))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_parameter_gets_a_gradient(spec):
    module, _ = build(spec)
    module(torch.randn(2, TOKENS, 12)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_bfloat16_with_and_without_autocast_stays_close_to_float32(spec):
    module, _ = build(spec)
    x = torch.randn(2, TOKENS, 12)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = module(x)
    assert half.dtype in (torch.bfloat16, torch.float32)
    # Codes of tokens near a threshold flip, so the kinds with codes are only alike on average.
    coded = isinstance(module, FittableAttention) or spec.name == "binary_qk"
    for found in (half, module.bfloat16()(x.bfloat16())):
        assert (found.float() - expected).norm() < (0.3 if coded else 0.03) * expected.norm()
    assert module(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("spec", FITTED, ids=str)
def test_images_with_nan_are_left_out_of_a_fit(spec):
    module, _ = build(spec, fitted=False)
    x, draw = torch.randn(4, TOKENS, 12), torch.Generator().manual_seed(0)
    with pytest.raises(InputError, match="all 4 images give NaN or infinite features"):
        module.fit_hash(torch.full_like(x, float("inf")), draw)
    assert not module.is_fitted
    x[0, 3] = float("nan")
    assert module.fit_hash(x, draw).skipped_images == 1
    assert all(value.isfinite().all() for value in module.state_dict().values())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_weights_on_the_meta_device_and_back_in_a_state_dict(spec):
    module, _ = build(spec)
    other, _ = build(spec)
    x = torch.randn(2, TOKENS, 12)
    assert not torch.equal(module(x), other(x))
    other.load_state_dict(module.state_dict())
    assert torch.equal(module(x), other(x))
    assert module.to("meta")(x.to("meta")).shape == x.shape


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_layer_reads_back_into_its_own_kind(spec):
    """The projections survive another conversion; kinds that keep no queries and keys say so."""
    module, linears = build(spec)
    if "query" not in module.carries:
        with pytest.raises(InputError, match=r"layer: .*start from the MSA"):
            read_projections(module, "layer")
        return
    source = read_projections(module, "layer")
    assert set(source.parts) == {"query", "value", "proj"} | ({"key"} if source.key is not None else set())
    assert all(name in dict(module.named_modules()) or hasattr(module, name) for name in source.parts.values())
    for role in source.parts:
        assert torch.equal(getattr(source, role).weight, linears[role].weight)
        assert torch.equal(getattr(source, role).bias, linears[role].bias)


def hand_counts(name, n, d, h):
    """(multiplications, additions) of one image, term by term, with the settings of SMALL."""
    c, k, m, f, e = d // h, 6, 5, 7, 8
    return {
        "msa": (2 * n * n * d + h * n * n, 2 * n * n * d),
        "msa_shared_qk": (2 * n * n * d + h * n * n, 2 * n * n * d),
        "msa_shift": (2 * n * n * d + h * n * n, 2 * n * n * d),
        "binary_qk": (n * n * d + h * n * n, 2 * n * n * d),
        "uniform": (d, n * d),
        "none": (0, 0),
        # k^T v, q times it; sum of k, q times it, division (no addition) and the sum's additions
        "relu_linear": (h * n * (c * c + c * c + c + c), h * n * (c * c + c * c + c + c)),
        # w q, w k; |k|^2, its half; k^T v, q times it; q times the sum of k; division
        "performer": (
            h * n * (c * f + c * f + c + 1 + c * f + c * f + f + c),
            h * n * (c * f + c * f + c + f + c * f + c * f + f + f),
        ),
        # W q, W k with b; k^T v, q times it, by 2 C features; q times the sum of k, softmaxes; division
        "hedgehog": (
            h * n * (c * c + c * c + 2 * c * c + 2 * c * c + 2 * c + 2 * c + 2 * c + c),
            h * n * (c * c + c + c * c + c + 2 * c * c + 2 * c * c + 2 * c + 2 * c),
        ),
        # E k, F v, q k^T, times values; softmax
        "linformer": (4 * n * e * d + h * n * e, 4 * n * e * d),
        # codes; values and output of the sums, and of the mean; then what the codes pick, and the weights of the bits
        "distilled_hash": (
            n * 2 * h * k * d + 2 * h * k * d * c + 2 * d * d + n * h * (d + 1) + h * k * (c + 1),
            n * 2 * h * k * d + 2 * h * k * d * c + 2 * d * d + n * (2 * h * k * d + 2 * h * k + d),
        ),
        # the same without weights, every picked term shifted
        "distilled": (
            n * 2 * h * k * d + 2 * h * k * d * c + 2 * d * d + n * h * (d + 1),
            n * 2 * h * k * d + 2 * h * k * d * c + 2 * d * d + n * (2 * h * k * d + 2 * h * k + d),
            n * (2 * h * k * d + 2 * h * k),
        ),
        "ecoformer": (
            h * n * (2 * m + m * k + k + 1 + c),
            h * n * (2 * m * c + m * k + 2 * k + 2 * k * c + c),
        ),
        "random_hash": (
            h * n * (2 * m + m * k + k + 1 + c),
            h * n * (2 * m * c + m * k + 2 * k + 2 * k * c + c),
        ),
        # q k^T and times values with 3 x 3 keys, softmax; the pooling's divisions and additions
        "linear_sra": (2 * n * 9 * d + h * n * 9 + 9 * d, 2 * n * 9 * d + n * d),
        "ecoformer_tuned": (
            h * (n * (2 * (2 * m + m * k) + k + 1 + c) + k * (c + 1)),
            h * n * (2 * (2 * m * c + m * k) + 2 * k + 2 * k * c + c),
        ),
    }[name]


@pytest.mark.parametrize("name", KINDS)
def test_paper_accounting_of_one_block_by_hand(name):
    module, _ = build(next(spec for spec in SPECS if spec.name == name))
    assert module.paper_core_ops(TOKENS) == hand_counts(name, TOKENS, 12, 3)


def softmax(scores):
    return scores.softmax(dim=-1)


def binarised(x):
    """sign(x) whose gradient is that of clamp(x, -1, 1)."""
    passing = x.clamp(-1, 1)
    return passing + (torch.where(x < 0, -1.0, 1.0) - passing).detach()


def signed(module, q, k, v):
    scores = binarised(q) @ binarised(k).mT / math.sqrt(q.shape[-1])
    if module.spec.form != "signs":
        scores = scores * q.abs().mean(dim=(2, 3), keepdim=True) * k.abs().mean(dim=(2, 3), keepdim=True)
    if module.spec.form in ("grid", "line"):
        scores = scores + position_bias(module, q.shape[2])
    return softmax(scores) @ v


def position_bias(module, num_tokens):
    """Looked up pair by pair in each head's table of (rows apart, columns apart)."""
    height, width = module.grid
    table = module.position_bias.view(module.num_heads, 2 * height - 1, 2 * width - 1)
    places = [divmod(token, width) for token in range(num_tokens)]
    pairs = [[table[:, r - y + height - 1, c - x + width - 1] for r, c in places] for y, x in places]
    return torch.stack([torch.stack(row, dim=1) for row in pairs], dim=1)


def mixed(module, q, k, v):
    values = module.key_mix if module.value_mix is None else module.value_mix
    return softmax(q @ (module.key_mix @ k).mT / math.sqrt(q.shape[-1])) @ (values @ v)


def estimated(module, q, k, v):
    def features(x):
        x = x / x.shape[-1] ** 0.25
        return torch.exp(x @ module.projection.T.double() - x.square().sum(-1, keepdim=True) / 2)

    weights = features(q) @ features(k).mT
    return weights / weights.sum(-1, keepdim=True) @ v


def mimicking(module, q, k, v):
    def features(x, part):
        y = torch.stack([x[:, head] @ module.feature_weight[head, part].T for head in range(x.shape[1])], dim=1)
        y = y + module.feature_bias.view(x.shape[1], 2, -1)[:, part, None]
        return torch.cat([softmax(y), softmax(-y)], dim=-1)

    weights = features(q, 0) @ features(k, 1).mT
    return weights / weights.sum(-1, keepdim=True) @ v


def rectified(module, q, k, v):
    weights = q.relu() @ k.relu().mT
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1) @ v


NAIVE = {
    **dict.fromkeys(("msa", "msa_shift"), lambda module, q, k, v: softmax(q @ k.mT / math.sqrt(q.shape[-1])) @ v),
    "msa_shared_qk": lambda module, q, k, v: softmax(q @ q.mT / math.sqrt(q.shape[-1])) @ v,
    "binary_qk": signed,
    "uniform": lambda module, q, k, v: softmax(0 * q @ k.mT) @ v,
    "none": lambda module, q, k, v: v,
    "relu_linear": rectified,
    "hedgehog": mimicking,
    "performer": estimated,
    "linformer": mixed,
}


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.name in NAIVE], ids=str)
@pytest.mark.parametrize(("dim", "num_heads", "batch"), [(12, 3, 2), (10, 2, 1), (7, 1, 3)])
def test_the_definition_and_its_gradients(spec, dim, num_heads, batch):
    """Output and gradients of the input and of every projection against the definition, in float64."""
    module, linears = build(spec, dim, num_heads)
    module.double()
    for linear in linears.values():
        linear.double()
    x = torch.randn(batch, TOKENS, dim, dtype=torch.float64, requires_grad=True)
    target = torch.randn_like(x)
    out = module(x)
    (out * target).sum().backward()
    grad, x.grad = x.grad, None
    q, k, v = (split_heads(linears[role](x), num_heads) for role in ("query", "key", "value"))
    expected = linears["proj"](join_heads(NAIVE[spec.name](module, q, k, v)))
    torch.testing.assert_close(out, expected)
    (expected * target).sum().backward()
    torch.testing.assert_close(grad, x.grad)
    if "query" in module.carries:
        source = read_projections(module, "layer")
        read = {role: getattr(source, role).weight for role in source.parts}
        assert all(torch.equal(read[role], linears[role].weight) for role in read)
    fused = getattr(module, "qkv", None)
    if fused is not None:
        stacked = torch.cat([linears[role].weight.grad for role in ("query", "key", "value")])
        torch.testing.assert_close(fused.weight.grad, stacked)
    torch.testing.assert_close(module.proj.weight.grad, linears["proj"].weight.grad)
