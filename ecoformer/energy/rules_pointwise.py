"""Rules of elementwise operations, and of those that only move data."""

import math
from collections.abc import Callable

from torch import Tensor

from ecoformer.energy.call import Call
from ecoformer.energy.kinds import Counts, counts, scaled
from ecoformer.energy.rules import free, per_element, rule
from ecoformer.energy.values import Endless, is_one_bit, is_power_of_two, names

free(
    names("""
    view _unsafe_view _reshape_alias view_as t transpose permute expand select slice split split_with_sizes
    unsafe_split unsafe_split_with_sizes unbind unsqueeze squeeze alias detach as_strided unfold diagonal narrow
    lift_fresh view_as_real view_as_complex empty empty_like empty_strided new_empty new_empty_strided resize
    is_same_size size stride sym_size sym_stride sym_numel sym_storage_offset _local_scalar_dense _assert_async
    _assert_tensor_metadata profiler::_record_function_enter_new profiler::_record_function_exit
    """),
    memory=False,
)
free(
    names("""
    clone contiguous _to_copy copy cat stack index _unsafe_index index_select gather embedding roll flip repeat
    repeat_interleave constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d rot90 take diag_embed tril triu tril_indices triu_indices max_unpool2d
    max_unpool3d full full_like ones ones_like zeros zeros_like new_full new_ones new_zeros fill zero scalar_tensor
    eye masked_fill where index_copy slice_scatter select_scatter channel_shuffle pixel_shuffle
    pixel_unshuffle im2col upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d
    neg abs sgn sign signbit copysign lift view_copy permute_copy
    """),
    memory=True,
)

for _names, _kinds in {
    "relu maximum minimum fmax fmin threshold": {"compare": 1},
    "eq ne lt le gt ge isnan isinf isfinite heaviside": {"compare": 1},
    "hardtanh relu6 hardshrink": {"compare": 2},
    "softshrink": {"compare": 2, "add": 1},
    "logical_not logical_and logical_or logical_xor bitwise_not bitwise_and bitwise_or bitwise_xor": {"binary_mul": 1},
    "floor ceil round trunc frac": {"compare": 1},
    "exp expm1 log log2 log10 log1p erf erfc erfinv tanh sin cos tan sinh cosh": {"exp": 1},
    "asin acos atan atan2 asinh acosh atanh": {"exp": 1},
    "sqrt": {"sqrt": 1},
    "rsqrt": {"sqrt": 1, "div": 1},
    "reciprocal": {"div": 1},
    "square": {"mul": 1},
    "rsub": {"add": 1},
    "remainder fmod floor_divide": {"div": 1, "mul": 1, "add": 1},
    # 1 / (1 + exp(-x)), and times x, or times the other half of the channels
    "sigmoid": {"exp": 1, "add": 1, "div": 1},
    "silu glu": {"exp": 1, "add": 1, "div": 1, "mul": 1},
    # min(0, x) - log(1 + exp(-|x|))
    "log_sigmoid_forward": {"compare": 1, "exp": 2, "add": 2},
    # x * clamp(x + 3, 0, 6) / 6, and without x
    "hardswish": {"add": 1, "compare": 2, "mul": 1, "div": 1},
    "hardsigmoid": {"add": 1, "compare": 2, "div": 1},
    "leaky_relu prelu _prelu_kernel": {"compare": 1, "mul": 1},
    "elu": {"compare": 1, "exp": 1, "add": 1, "mul": 1},
    # max(0, x) + min(0, alpha * (exp(x / alpha) - 1))
    "celu": {"compare": 1, "exp": 1, "add": 1, "mul": 1, "div": 1},
    "softplus": {"compare": 1, "exp": 2, "add": 1},
    "mish": {"compare": 1, "exp": 3, "add": 1, "mul": 1},
    "arange linspace": {"add": 1, "mul": 1},
    "lerp": {"add": 2, "mul": 1},
    # A weighted sum of so many inputs; the weights are tables.
    "upsample_linear1d": {"fma": 2},
    "upsample_bilinear2d": {"fma": 4},
    "upsample_bicubic2d": {"fma": 16},
}.items():
    rule(*names(_names))(per_element(**_kinds))


@rule("add", "sub")
def _add(call: Call) -> Counts:
    alpha = call.arg("alpha", 1)
    return counts(add=call.elements, mul=0 if alpha == 1 else call.elements)


@rule("mul")
def _mul(call: Call) -> Counts:
    factors = [call.values(call.arg(name)) for name in ("self", "other")]
    if any(map(is_one_bit, factors)):
        return counts(binary_mul=call.elements)
    return counts(shift=call.elements) if any(map(is_power_of_two, factors)) else counts(mul=call.elements)


@rule("exp2")
def _exp2(call: Call) -> Counts:
    """Of a whole number it is that number put into an exponent."""
    whole = call.values(call.arg("self")) is Endless.WHOLE
    return counts(shift=call.elements) if whole else counts(exp=call.elements)


@rule("div")
def _div(call: Call) -> Counts:
    rounded = call.arg("rounding_mode") is not None
    return counts(div=call.elements, compare=call.elements if rounded else 0)


@rule("addcmul", "addcdiv")
def _added_product(call: Call) -> Counts:
    scale = 0 if call.arg("value", 1) == 1 else call.elements
    return counts({call.name.removeprefix("addc"): call.elements, "add": call.elements}) + counts(mul=scale)


@rule("clamp", "clamp_min", "clamp_max")
def _clamp(call: Call) -> Counts:
    bounds = (call.arg("min") is not None) + (call.arg("max") is not None)
    return counts(compare=bounds * call.elements)


@rule("gelu")
def _gelu(call: Call) -> Counts:
    """x/2 * (1 + erf(x / sqrt(2))), or x/2 * (1 + tanh(c * (x + 0.044715 x^3)))."""
    by_tanh = call.arg("approximate", "none") == "tanh"
    return scaled(counts(mul=6, add=2, exp=1) if by_tanh else counts(mul=3, add=1, exp=1), call.elements)


@rule("pow")
def _pow(call: Call) -> Counts:
    exponent = call.arg("exponent")
    cheap: dict[float, Counts] = {
        0.0: counts(),
        1.0: counts(),
        2.0: counts(mul=1),
        3.0: counts(mul=2),
        4.0: counts(mul=2),
        0.5: counts(sqrt=1),
        -0.5: counts(sqrt=1, div=1),
        -1.0: counts(div=1),
        -2.0: counts(mul=1, div=1),
    }
    general = counts(exp=2, mul=1)  # exp(exponent * log(x))
    known = isinstance(exponent, int | float) and not isinstance(call.arg("self"), int | float)
    return scaled(cheap.get(float(exponent), general) if known else general, call.elements)


def _antialiased(taps: int) -> Callable[[Call], Counts]:
    """Columns, then rows: weighted sums of `taps` along an axis, more where it shrinks; a side that stays is free."""

    def counted(call: Call) -> Counts:
        (height, width), (rows, columns) = call.inputs[0].shape[-2:], call.outputs[0].shape[-2:]
        maps = call.elements // (rows * columns)
        across, down = (
            0 if before == after else math.ceil(taps * max(before / after, 1))
            for before, after in ((width, columns), (height, rows))
        )
        return counts(fma=maps * columns * (height * across + rows * down))

    return counted


rule("_upsample_bilinear2d_aa")(_antialiased(2))
rule("_upsample_bicubic2d_aa")(_antialiased(4))


@rule("native_dropout", "bernoulli")
def _dropout(call: Call) -> Counts:
    mask: Tensor = call.outputs[-1]
    return counts(mul=mask.numel() if call.name == "native_dropout" else 0, compare=mask.numel())
