"""Counts of small modules, derived by hand, and a witness that counts the same products."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.flop_counter import FlopCounterMode

from ecoformer.energy import count
from ecoformer.energy.kinds import ARITHMETIC


def arithmetic(model: nn.Module, *inputs: Tensor) -> Counter[str]:
    found = count(model, inputs).counts
    return Counter({kind: found[kind] for kind in ARITHMETIC if found[kind]})


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def test_linear() -> None:
    """5 x 3 tokens of 7 channels to 4: 15 * 4 inner products of length 7, and a bias each."""
    x = torch.zeros(5, 3, 7)
    assert arithmetic(nn.Linear(7, 4), x) == {"fma": 15 * 4 * 7, "add": 15 * 4}
    assert arithmetic(nn.Linear(7, 4, bias=False), x) == {"fma": 15 * 4 * 7}


def test_linear_bytes() -> None:
    """x, weight and bias are read once and the result written once, 4 bytes a number, or 2."""
    numbers = 3 * 7, 7 * 4, 4, 3 * 4
    for dtype, size in ((torch.float32, 4), (torch.float16, 2)):
        found = count(nn.Linear(7, 4), torch.zeros(3, 7), dtype=dtype).counts
        assert found["read_bytes"] == size * sum(numbers[:3])
        assert found["written_bytes"] == size * numbers[3]


def test_convolution_with_groups_and_bias() -> None:
    """8 channels in 2 groups to 6; 9 x 10 px, kernel 3 x 2, stride 2, padding 1: output 5 x 6."""
    x = torch.zeros(2, 8, 9, 10)
    outputs = 2 * 6 * 5 * 6
    conv = nn.Conv2d(8, 6, (3, 2), stride=2, padding=1, groups=2)
    assert arithmetic(conv, x) == {"fma": outputs * 3 * 2 * 4, "add": outputs}


def test_transposed_convolution() -> None:
    """Each of 2 * 4 * 5 * 5 inputs meets 3 output channels of a group and a 2 x 2 kernel; output 10 x 10."""
    conv = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
    assert arithmetic(conv, torch.zeros(2, 4, 5, 5)) == {"fma": 2 * 4 * 25 * 3 * 4, "add": 2 * 6 * 100}


def test_layer_norm() -> None:
    """Per row of n = 7: 3n - 2 + 1 additions and n of the shift; n squares, n products, n scales; 3 divisions."""
    n, rows = 7, 10
    expected = {"add": rows * (3 * n - 1 + n), "mul": rows * 3 * n, "div": rows * 3, "sqrt": rows}
    assert arithmetic(nn.LayerNorm(n), torch.zeros(2, 5, n)) == expected


def test_batch_norm_folds_its_statistics_per_channel() -> None:
    expected = {"fma": 2 * 3 * 16, "add": 3 * 2, "sqrt": 3, "div": 3, "mul": 3 * 2}
    assert arithmetic(nn.BatchNorm2d(3), torch.zeros(2, 3, 4, 4)) == expected


def test_gelu_relu_and_residual() -> None:
    x = torch.zeros(3, 5)
    assert arithmetic(Apply(lambda x: x + F.gelu(x)), x) == {"add": 15 + 15, "mul": 45, "exp": 15}
    assert arithmetic(nn.ReLU(), x) == {"compare": 15}


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])
def test_softmax_attention(fused: bool) -> None:
    """B2 H3 N5 M4 C6: two products of BHNM * C, a scale each, and rows of M = 4 in the softmax."""
    q, k, v = torch.zeros(2, 3, 5, 6), torch.zeros(2, 3, 4, 6), torch.zeros(2, 3, 4, 6)
    scores, rows = 2 * 3 * 5 * 4, 2 * 3 * 5
    expected = {
        "fma": 2 * scores * 6,
        "mul": scores,
        "compare": rows * 3,
        "add": scores + rows * 3,
        "exp": scores,
        "div": scores,
    }
    function = F.scaled_dot_product_attention if fused else softmax_attention
    assert arithmetic(Apply(function), q, k, v) == expected


def test_fused_attention_writes_no_scores() -> None:
    x = torch.zeros(1, 1, 64, 8)
    fused, explicit = (
        count(Apply(f), (x, x, x)).counts["written_bytes"] for f in (F.scaled_dot_product_attention, softmax_attention)
    )
    assert fused == 4 * 64 * 8
    assert explicit >= 4 * (64 * 8 + 3 * 64 * 64)


def test_fused_attention_is_counted_alike_on_a_real_device() -> None:
    x = torch.randn(2, 3, 16, 8)
    model = Apply(F.scaled_dot_product_attention)
    assert count(model, (x, x, x)).counts == count(model, (x, x, x), device="cpu").counts


def test_adaptive_pooling_sums_its_windows() -> None:
    """5 to 3 uneven windows: [0, 2), [1, 4), [3, 5), so 2 + 3 + 2 = 7 along each side."""
    found = arithmetic(nn.AdaptiveAvgPool2d(3), torch.zeros(1, 2, 5, 5))
    assert found == {"add": 2 * (7 * 7 - 9), "div": 2 * 9}


def test_pooling_beyond_the_edge_takes_what_is_there() -> None:
    """4 x 4 windows over 6 x 6: 4 and 2 numbers along each side, of which ceil_mode keeps both."""
    x = torch.zeros(1, 2, 6, 6)
    assert arithmetic(nn.AvgPool2d(4, 4, ceil_mode=True), x) == {"add": 2 * (6 * 6 - 4), "div": 2 * 4}
    assert arithmetic(nn.MaxPool2d(3, 2, padding=1), x) == {"compare": 2 * 9 * 8}
    assert arithmetic(nn.MaxPool2d(2, 1, dilation=3, ceil_mode=True), x) == {"compare": 2 * 9 * 3}


def test_views_cost_nothing_and_copies_cost_bytes() -> None:
    x = torch.zeros(4, 6)
    assert count(Apply(lambda x: x.reshape(3, 8).t().unsqueeze(0)[:, 1:]), x).counts == {}
    for copy in (lambda x: x.t().contiguous(), lambda x: x.t().reshape(3, 8), lambda x: x.t().flatten()):
        assert count(Apply(copy), x).counts == {"read_bytes": 96, "written_bytes": 96}


X = torch.zeros(2, 6, 5)


@pytest.mark.parametrize(
    ("module", "each"),
    [
        # |x| <= lambda is two comparisons; the soft one takes lambda off
        (nn.Hardshrink(), {"compare": 1 + 1}),
        (nn.Softshrink(), {"compare": 1 + 1, "add": 1}),
        (nn.Threshold(0.1, 20.0), {"compare": 1}),
        # x where x > 0, else alpha * (exp(x / alpha) - 1)
        (nn.CELU(2.0), {"compare": 1, "div": 1, "exp": 1, "add": 1, "mul": 1}),
        (Apply(torch.asin), {"exp": 1}),
        (Apply(lambda x: torch.copysign(x, x)), {}),
        (Apply(lambda x: torch.addcmul(x, x, x, value=2)), {"mul": 2, "add": 1}),
        (Apply(lambda x: torch.addcdiv(x, x, x, value=2)), {"div": 1, "mul": 1, "add": 1}),
        (Apply(lambda x: torch.addcdiv(x, x, x)), {"div": 1, "add": 1}),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, nn.Module) else "",
)
def test_activations(module: nn.Module, each: dict[str, int]) -> None:
    assert arithmetic(module, X) == {kind: n * 60 for kind, n in each.items()}


def test_a_gated_unit_is_a_sigmoid_and_a_product_of_half_the_channels() -> None:
    assert arithmetic(nn.GLU(1), X) == {"exp": 30, "add": 30, "div": 30, "mul": 30}


@pytest.mark.parametrize("dim", [0, 1])
def test_weights_with_their_norm_apart(dim: int) -> None:
    """7 weights for each of 4 outputs (dim 0), or 4 for each of 7 inputs: squares, sum and root, g / |v|, times v."""
    linear = weight_norm(nn.Linear(7, 4, bias=False), dim=dim)
    norms = (4, 7)[dim]
    expected = {"mul": 28 + 28, "add": 28 - norms, "sqrt": norms, "div": norms, "fma": 3 * 28}
    assert arithmetic(linear, torch.zeros(3, 7)) == expected


def test_weights_over_their_spectral_norm() -> None:
    """u^T W v of the vectors that training left: 4 sums of 7, one of 4, and a division a weight."""
    linear = spectral_norm(nn.Linear(7, 4, bias=False))
    found = count(linear, torch.zeros(3, 7))
    assert {k: n for k, n in found.counts.items() if k in ARITHMETIC} == {"fma": 28 + 4 + 3 * 28, "div": 28}
    assert not found.has_attention and "activations" not in found.table()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("sum", {"add": 3 * 4 * 7}), ("mean", {"add": 3 * 4 * 7, "div": 3 * 7}), ("max", {"compare": 3 * 4 * 7})],
)
def test_bags_of_embeddings(mode: str, expected: dict[str, int]) -> None:
    """3 bags of 5 rows of 7 numbers: 4 sums or comparisons each; only the rows that are asked for are read."""
    ids = torch.zeros(15, dtype=torch.int64), torch.tensor([0, 5, 10])
    found = count(nn.EmbeddingBag(1000, 7, mode=mode), ids)
    assert {k: n for k, n in found.counts.items() if k in ARITHMETIC} == expected
    assert found.counts["read_bytes"] == 4 * 15 * 7 + 8 * (15 + 3) and found.counts["written_bytes"] == 4 * 3 * 7


def test_weighed_bags_of_embeddings_are_products() -> None:
    def weighed(ids: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
        return F.embedding_bag(ids, torch.zeros(9, 7), starts, per_sample_weights=weights, mode="sum")

    ids = torch.zeros(15, dtype=torch.int64), torch.tensor([0, 5, 10])
    assert arithmetic(Apply(weighed), *ids, torch.zeros(15)) == {"fma": 15 * 7}


@pytest.mark.parametrize("convention", ["paper", "audited"])
def test_bilinear_is_two_products(convention: str) -> None:
    """x^T W y for 3 samples, x of 5, y of 7, 4 outputs: 3 * 4 * 7 sums of 5 and 3 * 4 of 7; the bias is added apart."""
    found = count(nn.Bilinear(5, 7, 4), (torch.zeros(3, 5), torch.zeros(3, 7)), convention=convention)
    products = 3 * 4 * 7 * 5 + 3 * 4 * 7
    assert (found.muls, found.adds) == (products, products + (3 * 4 if convention == "audited" else 0))


@pytest.mark.parametrize(
    ("function", "comparisons"),
    [
        (lambda x: x.topk(1)[0], 7),  # a maximum of 8
        (lambda x: x.topk(2)[0], 7 + 2),  # the second is among the 3 that the first beat
        (lambda x: x.kthvalue(3)[0], 7 + 2 + 2),  # the third: a path of the 7 that are left
        (lambda x: x[..., :4].sort()[0], 1 + 2 + 2),  # each is inserted among 1, 2, 3 by halving
        (lambda x: x.argsort(), 1 + 2 + 2 + 3 + 3 + 3 + 3),
        (lambda x: x[..., :3].median(dim=-1)[0], 2 + 1),
    ],
    ids=["largest", "two", "third", "sort of 4", "sort of 8", "median of 3"],
)
def test_order_takes_the_comparisons_of_a_knockout(function: Callable, comparisons: int) -> None:
    assert arithmetic(Apply(function), torch.zeros(5, 8)) == {"compare": 5 * comparisons}


def test_running_products_and_extremes_and_sums_into_places() -> None:
    x, at = torch.zeros(5, 8), torch.zeros(5, dtype=torch.int64)
    assert arithmetic(Apply(lambda x: x.cumprod(-1)), x) == {"mul": 5 * 7}
    assert arithmetic(Apply(lambda x: x.cummax(-1)[0]), x) == {"compare": 5 * 7}
    assert arithmetic(Apply(lambda x, at: torch.zeros(2, 8).index_add(0, at, x)), x, at) == {"add": 5 * 8}
    assert arithmetic(Apply(lambda x, at: torch.zeros(2, 8).index_add(0, at, x, alpha=2)), x, at)["mul"] == 5 * 8
    # The first two rows alone, though five are given; and what is written over is free.
    into, few = torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.int64)
    assert arithmetic(Apply(lambda x, at: into.to(x).scatter_add(0, at, x)), x, few) == {"add": 2 * 8}
    assert arithmetic(Apply(lambda x, at: into.to(x).scatter(0, at, x)), x, few) == {}
    assert arithmetic(Apply(lambda x, at: into.to(x).scatter(0, at, x, reduce="multiply")), x, few) == {"mul": 2 * 8}
    assert arithmetic(Apply(lambda x, at: into.to(x).scatter(0, at, 1.0, reduce="add")), x, few) == {"add": 2 * 8}
    assert arithmetic(Apply(lambda x, at: into.to(x).index_put((at,), x)), x, at) == {}
    assert arithmetic(Apply(lambda x, at: into.to(x).index_put((at,), x, accumulate=True)), x, at) == {"add": 5 * 8}
    one = x[0, :1]
    assert arithmetic(Apply(lambda x, at: into.to(x).index_put((at,), x, accumulate=True)), one, at) == {"add": 5 * 8}


def random_module(generator: torch.Generator) -> tuple[nn.Module, Tensor]:
    """An odd stack of convolutions, a recombination of heads and a linear layer."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    groups = draw(1, 3)
    channels, middle = groups * draw(1, 3), groups * draw(1, 4)
    conv = nn.Conv2d(
        channels,
        middle,
        (draw(1, 3), draw(1, 3)),
        stride=draw(1, 2),
        padding=draw(0, 2),
        dilation=draw(1, 2),
        groups=groups,
        bias=bool(draw(0, 1)),
    )
    up = nn.ConvTranspose2d(middle, draw(1, 3), draw(1, 3), stride=draw(1, 2), bias=bool(draw(0, 1)))
    linear = nn.Linear(draw(2, 9), draw(1, 5), bias=bool(draw(0, 1)))
    width, as_module = linear.in_features, bool(draw(0, 1))

    def run(x: Tensor) -> Tensor:
        y = up(conv(x)).flatten(1)
        y = y[:, : y.shape[1] // width * width].reshape(x.shape[0], -1, width)
        scores = torch.einsum("bnc,bmc->bnm", y, y)
        mixed = torch.baddbmm(y, scores, y, beta=0.5)
        return linear(mixed) if as_module else mixed @ linear.weight.t()

    model = Apply(run)
    model.layers = nn.ModuleList([conv, up, linear])
    return model, torch.randn(draw(1, 3), channels, draw(7, 12), draw(7, 12), generator=generator)


@pytest.mark.parametrize("seed", range(25))
def test_products_agree_with_torchs_counter(seed: int) -> None:
    model, x = random_module(torch.Generator().manual_seed(seed))
    found = count(model, x)
    with torch.inference_mode(), FlopCounterMode(display=False) as witness:
        model(x)
    assert 2 * found.counts["fma"] == witness.get_total_flops()


def test_resizing_with_antialiasing() -> None:
    """3 maps of 4 x 6: columns first, 4 rows of 12 by 4 taps; then 2 rows of 12 by 4 taps twice as far apart."""

    def resized(size: tuple[int, int], mode: str) -> Counter[str]:
        resize = Apply(lambda x: F.interpolate(x, size, mode=mode, antialias=True))
        return arithmetic(resize, torch.zeros(1, 3, 4, 6))

    assert resized((2, 12), "bicubic") == {"fma": 3 * 12 * (4 * 4 + 2 * 8)}
    assert resized((2, 12), "bilinear") == {"fma": 3 * 12 * (4 * 2 + 2 * 4)}
    assert resized((8, 6), "bicubic") == {"fma": 3 * 6 * 8 * 4}  # a ViT's positions at another height
