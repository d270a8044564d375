"""Rules of matrix products, convolutions and fused attention."""

from math import prod

from torch import Tensor

from ecoformer.energy.call import Call
from ecoformer.energy.kinds import Counts, counts, scaled
from ecoformer.energy.rules import inner_products, rule


def matmul_terms(left: Tensor, right: Tensor) -> int:
    """Multiplications of (..., m, k) @ (..., k, n)."""
    return left.numel() * right.shape[-1]


def _is_one(number: object) -> bool:
    return isinstance(number, int | float) and number == 1


def _linear_combination(call: Call, product: Counts, outputs: int) -> Counts:
    """beta * self + alpha * product: one addition an output, a multiplication for each factor that is not 1."""
    factors = sum(not _is_one(call.arg(name, 1)) for name in ("beta", "alpha"))
    return product + counts(add=outputs, mul=factors * outputs)


@rule("mm", "bmm", products=True)
def _mm(call: Call) -> Counts:
    left, right = call.arg("self"), call.arg("mat2")
    return inner_products(matmul_terms(left, right), call.values(left), call.values(right))


@rule("mv", products=True)
def _mv(call: Call) -> Counts:
    left, right = call.arg("self"), call.arg("vec")
    return inner_products(left.numel(), call.values(left), call.values(right))


@rule("dot", "vdot", products=True)
def _dot(call: Call) -> Counts:
    left = call.arg("self")
    right = call.arg("tensor") if call.arg("tensor") is not None else call.arg("other")
    return inner_products(left.numel(), call.values(left), call.values(right))


@rule("addmm", products=True)
def _addmm(call: Call) -> Counts:
    left, right = call.arg("mat1"), call.arg("mat2")
    product = inner_products(matmul_terms(left, right), call.values(left), call.values(right))
    return _linear_combination(call, product, call.elements)


@rule("baddbmm", products=True)
def _baddbmm(call: Call) -> Counts:
    left, right = call.arg("batch1"), call.arg("batch2")
    product = inner_products(matmul_terms(left, right), call.values(left), call.values(right))
    return _linear_combination(call, product, call.elements)


@rule("addmv", products=True)
def _addmv(call: Call) -> Counts:
    left, right = call.arg("mat"), call.arg("vec")
    product = inner_products(left.numel(), call.values(left), call.values(right))
    return _linear_combination(call, product, call.elements)


def convolution_terms(x: Tensor, weight: Tensor, out: Tensor, transposed: bool) -> int:
    """Multiplications of a convolution with weight (Cout, Cin/groups, *kernel), padding taps included.

    Transposed, weight is (Cin, Cout/groups, *kernel) and each input element meets the whole kernel.
    """
    return (x if transposed else out).numel() * prod(weight.shape[1:])


@rule(
    "convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "convolution_overrideable", products=True
)
def _convolution(call: Call) -> Counts:
    x = call.arg("input") if call.arg("input") is not None else call.arg("self")
    weight = call.arg("weight")
    transposed = bool(call.arg("transposed", False))
    terms = convolution_terms(x, weight, call.outputs[0], transposed)
    held = call.values(x)
    if any(call.arg("padding")):  # padded taps are zeros, which +-1 codes and powers of two cannot express
        held = held | {0.0} if isinstance(held, frozenset) else None
    product = inner_products(terms, held, call.values(weight))
    return product + counts(add=call.elements if call.arg("bias") is not None else 0)


def attention(rows: int, keys: int, head_dim: int, value_dim: int, masked: bool, causal: bool) -> tuple[Counts, Counts]:
    """softmax(scale * q k^T + mask) v for `rows` queries in all: (the two products, the rest).

    Causal masks are charged in full: the scores above the diagonal are computed by the definition.
    """
    scores = rows * keys
    products = counts(fma=scores * (head_dim + value_dim))
    rest = counts(mul=scores, add=scores if masked else 0, compare=scores if causal else 0)
    return products, rest + softmax(rows, keys)


def softmax(rows: int, length: int) -> Counts:
    """Per row of n: n - 1 comparisons for the maximum, n subtractions and exps, n - 1 additions, n divisions."""
    each = counts(compare=length - 1, add=2 * length - 1, exp=length, div=length) if length else counts()
    return scaled(each, rows)


ATTENTION = (
    "scaled_dot_product_attention",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


@rule(*ATTENTION, products=True)
def _attention(call: Call) -> Counts:
    query, key, value = call.arg("query"), call.arg("key"), call.arg("value")
    mask = call.arg("attn_mask") if call.arg("attn_mask") is not None else call.arg("attn_bias")
    products, rest = attention(
        rows=call.outputs[0].numel() // value.shape[-1],  # of the result: batches of query and keys may broadcast
        keys=key.shape[-2],
        head_dim=query.shape[-1],
        value_dim=value.shape[-1],
        masked=mask is not None,
        causal=bool(call.arg("is_causal", False)),
    )
    return products + rest
