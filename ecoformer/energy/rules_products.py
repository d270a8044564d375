"""Rules of matrix products, convolutions and fused attention."""

from math import prod

from ecoformer.energy.call import Call
from ecoformer.energy.kinds import Counts, counts, scaled
from ecoformer.energy.rules import inner_products, rule
from ecoformer.energy.values import names

OPERANDS = {
    "mm": ("self", "mat2"),
    "bmm": ("self", "mat2"),
    "mv": ("self", "vec"),
    "dot": ("self", "tensor"),
    "vdot": ("self", "other"),
    "addmm": ("mat1", "mat2"),
    "baddbmm": ("batch1", "batch2"),
    "addmv": ("mat", "vec"),
}
"""The two factors of each inner product."""


@rule(*OPERANDS, products=True)
def _product(call: Call) -> Counts:
    """(..., m, k) @ (..., k, n), or with one vector, or two.

    Those of add... give beta * self + alpha * product: one addition an output, a multiplication for each factor that
    is not 1.
    """
    left, right = (call.arg(name) for name in OPERANDS[call.name])
    terms = left.numel() * (right.shape[-1] if right.dim() > 1 else 1)
    product = inner_products(terms, call.values(left), call.values(right))
    if "add" not in call.name:
        return product
    factors = sum(call.arg(name, 1) != 1 for name in ("beta", "alpha"))
    return product + counts(add=call.elements, mul=factors * call.elements)


@rule("_trilinear", products=True)
def _bilinear(call: Call) -> Counts:
    """x^T W y for x (B, I), W (O, I, J), y (B, J): O * J products with W of length I, then O with y of length J."""
    x, weight, y = (call.arg(name) for name in ("i1", "i2", "i3"))
    sums = call.elements * weight.shape[-1]
    inner = inner_products(sums * weight.shape[-2], call.values(x), call.values(weight))
    return inner + inner_products(sums, None, call.values(y))


@rule(
    "convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution", "convolution_overrideable", products=True
)
def _convolution(call: Call) -> Counts:
    """With weight (Cout, Cin/groups, *kernel), padding taps included.

    Transposed, weight is (Cin, Cout/groups, *kernel) and each input element meets the whole kernel.
    """
    x = call.arg("input") if call.arg("input") is not None else call.arg("self")
    weight = call.arg("weight")
    met = x if call.arg("transposed", False) else call.outputs[0]
    terms = met.numel() * prod(weight.shape[1:])
    held = call.values(x)
    if any(call.arg("padding")) and isinstance(held, frozenset):  # padded taps are zeros, which are no +-1 codes
        held |= {0.0}
    product = inner_products(terms, held, call.values(weight))
    return product + counts(add=call.elements if call.arg("bias") is not None else 0)


def softmax(rows: int, length: int) -> Counts:
    """Per row of n: n - 1 comparisons for the maximum, n subtractions and exps, n - 1 additions, n divisions."""
    each = counts(compare=length - 1, add=2 * length - 1, exp=length, div=length) if length else counts()
    return scaled(each, rows)


ATTENTION = names("""
    scaled_dot_product_attention _scaled_dot_product_attention_math _scaled_dot_product_attention_math_for_mps
    _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_cudnn_attention
    _scaled_dot_product_efficient_attention _scaled_dot_product_fused_attention_overrideable
""")


@rule(*ATTENTION, products=True)
def _attention(call: Call) -> Counts:
    """softmax(scale * q k^T + mask) v.

    Causal masks are charged in full: the scores above the diagonal are computed by the definition.
    """
    query, key, value = call.arg("query"), call.arg("key"), call.arg("value")
    has_mask = call.arg("attn_mask") is not None or call.arg("attn_bias") is not None
    rows = call.outputs[0].numel() // value.shape[-1]  # of the result: batches of query and keys may broadcast
    scores = rows * key.shape[-2]
    products = counts(fma=scores * (query.shape[-1] + value.shape[-1]))
    rest = counts(mul=scores, add=has_mask * scores, compare=bool(call.arg("is_causal", False)) * scores)
    return products + rest + softmax(rows, key.shape[-2])
