"""The kinds of work that a ledger tells apart, the arithmetic on their counts, and its lines, which hold them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ecoformer.errors import InputError

MEANINGS = {
    "mul": "a multiplication",
    "add": "an addition or subtraction, also one term of a sum whose other factor is a 1-bit or ternary code",
    "fma": "a multiplication whose product is added to a running sum",
    "compare": "a comparison, minimum or maximum",
    "exp": "one evaluation of a transcendental function: exp, log, erf, tanh, sin, cos",
    "div": "a division",
    "sqrt": "a square root",
    "binary_mul": "a product with a 1-bit factor alone (XNOR, AND, sign flip), or a 1-bit logic gate",
    "popcount": "one 1-bit term accumulated into an integer",
    "shift": "a product with a power of two: an addition to an exponent, or a shift of an integer",
    "read_bytes": "bytes of operands read, every operation reading its inputs once",
    "written_bytes": "bytes of results written",
}
KINDS = tuple(MEANINGS)
MEMORY = ("read_bytes", "written_bytes")
ARITHMETIC = tuple(kind for kind in KINDS if kind not in MEMORY)

Counts = Counter[str]


def counts(values: Mapping[str, int] | None = None, **kinds: int) -> Counts:
    """Counts per kind; zero entries are left out. Raises InputError for unknown kinds."""
    merged = {**(values or {}), **kinds}
    for kind, n in merged.items():
        if kind not in KINDS or not n >= 0:
            raise InputError(f"operations {kind}={n} are no count: give numbers from 0 of {', '.join(KINDS)}")
    return Counter({kind: int(n) for kind, n in merged.items() if n})


def scaled(part: Mapping[str, int], factor: int) -> Counts:
    return Counter({kind: n * factor for kind, n in part.items() if n * factor})


CORE = "core"
LOOSE = "product of activations"


@dataclass(frozen=True)
class Entry:
    """The work of one operation in one module, summed over its calls; bytes of integers beside floats stand apart.

    Attributes:
        module, module_class: the innermost module that ran it.
        function: the function of the model's code that asked for it ("hash_attention"), empty in the paper convention.
        op: the operation ("aten.mul.Tensor"), or the term of the paper's accounting ("Conv2d").
        attention: name of the attention layer around it, if any; "(model)" if that is the whole model.
        part: "Conv2d", "Linear" (functional ones included), "LayerNorm", the class of another convolution or norm,
            CORE for what an attention core does, LOOSE for a product of two activations in no such core, or "".
        bits: width of the numbers it worked on; 0 for integers.
    """

    module: str
    module_class: str
    function: str
    op: str
    attention: str
    part: str
    bits: int
    calls: int
    counts: Counts

    @property
    def core(self) -> bool:
        """Whether it belongs to the attention proper, not to a projection, convolution or norm."""
        return self.part == CORE
