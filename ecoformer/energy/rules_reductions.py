"""Rules of reductions, normalisations and pooling."""

from math import prod

from ecoformer.energy.call import Call
from ecoformer.energy.kinds import Counts, counts, scaled
from ecoformer.energy.rules import SOFTMAX, group_size, rule, sum_of
from ecoformer.energy.rules_products import softmax


def _sizes(call: Call) -> tuple[int, int]:
    return call.arg("self").numel(), call.elements


@rule("sum", "nansum", "mean")
def _sum(call: Call) -> Counts:
    elements, groups = _sizes(call)
    return sum_of(elements, groups, call.values(call.arg("self"))) + counts(div=groups * (call.name == "mean"))


@rule("col2im", "scatter_add", "index_add")
def _added_into(call: Call) -> Counts:
    """Every element is added to what stands in its place: of columns, to an image that starts at zero."""
    elements = call.arg("index" if call.name == "scatter_add" else "source", call.arg("self")).numel()
    return counts(add=elements, mul=0 if call.arg("alpha", 1) == 1 else elements)


@rule("scatter", "index_put", complex_times=2)
def _put(call: Call) -> Counts:
    """Nothing, but where what is put is reduced with what stands there."""
    if not (call.arg("reduce") or call.arg("accumulate")):
        return counts()
    places = call.arg("index")
    if places is None:
        places = call.arg("self")[tuple(slice(None) if index is None else index for index in call.arg("indices"))]
    return counts({"mul" if call.arg("reduce") == "multiply" else "add": places.numel()})


@rule("prod", "amax", "amin", "max", "min", "argmax", "argmin", "any", "all")
def _folded(call: Call) -> Counts:
    if call.arg("other") is not None:  # max(x, y)
        return counts(compare=call.elements)
    elements, groups = _sizes(call)
    kind = {"prod": "mul", "any": "binary_mul", "all": "binary_mul"}.get(call.name, "compare")
    return counts({kind: max(0, elements - groups)})


@rule("cumsum", "cumprod", "cummax", "cummin")
def _cumulative(call: Call) -> Counts:
    length = group_size(call, call.arg("dim"))
    kind = {"cumsum": "add", "cumprod": "mul"}.get(call.name, "compare")
    return counts({kind: call.elements // length * (length - 1) if length else 0})


@rule("topk", "sort", "kthvalue", "median")
def _in_order(call: Call) -> Counts:
    """The first k of n in order, as a knockout finds them: n - 1 comparisons, then for each further place of j that are
    left the ceil(log2 j) - 1 of one path. All n take as many as a binary insertion sort (Knuth, TAOCP 3, 5.3.3).
    """
    x = call.arg("self")
    length = group_size(call, call.arg("dim"))
    k = call.arg("k", (length + 1) // 2 if call.name == "median" else length)
    if not length or not k:
        return counts()
    paths = sum((j - 1).bit_length() - 1 for j in range(length + 2 - k, length + 1))  # logarithms, rounded up
    return scaled(counts(compare=length - 1 + paths), x.numel() // length)


@rule("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(call: Call) -> Counts:
    """The rows of each bag are added up, averaged or compared, as if no bag were empty and no row padding."""
    sums = call.elements
    elements = call.arg("indices").numel() * call.arg("weight").shape[-1]
    if call.arg("per_sample_weights") is not None:
        return counts(fma=elements)
    kind, divisions = (("add", 0), ("add", sums), ("compare", 0))[call.arg("mode")]
    return counts({kind: max(elements - sums, 0), "div": divisions})


@rule("_weight_norm_interface")
def _weight_norm(call: Call) -> Counts:
    """v * (g / |v|), one norm for each of g."""
    elements, groups = call.arg("v").numel(), call.arg("g").numel()
    return counts(mul=2 * elements, add=elements - groups, sqrt=groups, div=groups)


def _moments(rows: int, length: int) -> Counts:
    """Mean and biased variance of each row: 2(n - 1) + n additions, n squares, 2 divisions."""
    return scaled(counts(add=3 * length - 2, mul=length, div=2), rows) if length else counts()


@rule("var", "std", "var_mean", "std_mean")
def _variance(call: Call) -> Counts:
    x, groups = call.arg("self"), call.elements
    roots = groups if call.name.startswith("std") else 0
    return _moments(groups, x.numel() // max(1, groups)) + counts(sqrt=roots)


@rule("linalg_vector_norm", "norm")
def _norm(call: Call) -> Counts:
    elements, groups = _sizes(call)
    order = call.arg("ord") if call.name == "linalg_vector_norm" else call.arg("p")
    terms = max(0, elements - groups)
    if order is None or order == 2:
        return counts(mul=elements, add=terms, sqrt=groups)
    if order == 1:
        return counts(add=terms)
    if order in (float("inf"), float("-inf")):
        return counts(compare=terms)
    return counts(exp=2 * (elements + groups), mul=elements + groups, add=terms)


@rule(*SOFTMAX)
def _softmax(call: Call) -> Counts:
    x = call.arg("self")
    length = x.shape[call.arg("dim")] if x.dim() else 1
    return softmax(x.numel() // max(1, length), length)


@rule("_log_softmax")
def _log_softmax(call: Call) -> Counts:
    """x - max - log(sum exp(x - max))"""
    x = call.arg("self")
    length = x.shape[call.arg("dim")] if x.dim() else 1
    if not x.numel():
        return counts()
    each = counts(compare=length - 1, add=3 * length - 1, exp=length + 1)
    return scaled(each, x.numel() // length)


@rule("logsumexp")
def _logsumexp(call: Call) -> Counts:
    length = max(1, group_size(call, call.arg("dim")))
    return scaled(counts(compare=length - 1, add=2 * length, exp=length + 1), call.elements)


def _normalise(rows: int, length: int, affine: int) -> Counts:
    """Moments, 1/sqrt(var + eps) per row, one product per element (the differences are at hand), then scale, shift."""
    return _moments(rows, length) + counts(
        add=rows + (rows * length if affine > 1 else 0), sqrt=rows, div=rows, mul=rows * length * (2 if affine else 1)
    )


@rule("native_layer_norm", "native_group_norm")
def _layer_norm(call: Call) -> Counts:
    is_grouped = call.name == "native_group_norm"
    length = max(1, prod(() if is_grouped else call.arg("normalized_shape")))
    rows = call.arg("N") * call.arg("group") if is_grouped else call.elements // length
    affine = sum(call.arg(name) is not None for name in ("weight", "bias"))
    return _normalise(rows, call.elements // max(1, rows), affine)


@rule("rms_norm", "_fused_rms_norm")
def _rms_norm(call: Call) -> Counts:
    length = prod(call.arg("normalized_shape"))
    rows = call.elements // max(1, length)
    scaling = 2 if call.arg("weight") is not None else 1
    each = counts(mul=length + scaling * length, add=length - 1 + 1, div=2, sqrt=1)
    return scaled(each, rows)


BATCH_NORMS = "_native_batch_norm_legit_no_training _native_batch_norm_legit _batch_norm_no_update native_batch_norm"


@rule(*BATCH_NORMS.split(), "cudnn_batch_norm")
def _batch_norm(call: Call) -> Counts:
    """Scale and shift folded per channel, then one multiply-add per element; moments first if not given."""
    channels = call.outputs[0].shape[1]
    given = call.arg("running_mean") is not None and not call.arg("training", False)
    moments = counts() if given else _moments(channels, call.elements // channels)
    return moments + counts(fma=call.elements) + scaled(counts(add=2, sqrt=1, div=1, mul=2), channels)


def _pooled(call: Call, covered: int) -> Counts:
    """Windows that cover so many numbers in all are averaged, or their largest taken."""
    terms = covered - call.elements
    return counts(add=terms, div=call.elements) if "avg" in call.name else counts(compare=terms)


def _rank(call: Call) -> int:
    return int(call.name[call.name.index("pool") + len("pool")])


MAX_POOLS = ("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "max_pool1d")


@rule(*MAX_POOLS, "avg_pool1d", "avg_pool2d", "avg_pool3d")
def _pool(call: Call) -> Counts:
    rank, out = _rank(call), call.outputs[0]
    settings = [
        call.arg(key, [1]) or call.arg("kernel_size") for key in ("kernel_size", "stride", "padding", "dilation")
    ]
    along = zip(*(list(value) * (rank // len(value)) for value in settings), strict=True)
    sides = zip(call.arg("self").shape[-rank:], out.shape[-rank:], along, strict=True)
    windows = prod(_windows(size, outputs, *setting) for size, outputs, setting in sides)
    return _pooled(call, out.numel() // prod(out.shape[-rank:]) * windows)


def _windows(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Summed window lengths of pooling, padding included; with ceil_mode the last may reach beyond it, to nothing."""
    end = size + 2 * padding
    return sum(min(kernel, -(-(end - i * stride) // dilation)) for i in range(outputs))


def _adaptive_windows(size: int, outputs: int) -> int:
    """Summed window lengths of adaptive pooling: window i covers floor(i*size/n) to ceil((i+1)*size/n)."""
    return sum(-(-(i + 1) * size // outputs) - i * size // outputs for i in range(outputs))


ADAPTIVE_AVERAGES = ("adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d")


@rule(*ADAPTIVE_AVERAGES, "adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_pool(call: Call) -> Counts:
    x, out, rank = call.arg("self"), call.outputs[0], _rank(call)
    windows = prod(_adaptive_windows(i, o) for i, o in zip(x.shape[-rank:], out.shape[-rank:], strict=True))
    return _pooled(call, out.numel() // prod(out.shape[-rank:]) * windows)
