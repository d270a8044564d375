"""From the paper's figure to the audited one, line by line.

The lines of a model add up to the whole difference, in counts and in energy, because every entry of both ledgers is in
exactly one of them.
"""

from dataclasses import dataclass

from ecoformer.energy import kinds
from ecoformer.energy.kinds import Counts
from ecoformer.energy.ledger import Entry, Ledger
from ecoformer.energy.profile import Profile
from ecoformer.errors import InputError

PAPER_CORE = "attention core, paper formula"

REASONS = {
    "Conv2d": "same products; a bias is one addition, the paper also charges a multiplication",
    "Linear": "same products; the paper leaves the bias out",
    "LayerNorm": "the paper charges 2 per element to both; run are mean, variance, 1/sqrt, scale and shift",
    PAPER_CORE: "the formula, replaced by the lines that name functions and operations",
    "scaled_dot_product_attention": "both products and the scale as in the formula; softmax is not in it",
    "kernel": "norms, sigma and the threshold of each bit: not in the formula",
    "per_head": "the formula takes two additions a term of the distance, no product; run are matrix products",
    "features": "scaling the distances and their exponential: not in the formula",
    "pre_code": "the mean of the features, folded into one threshold a bit: not in the formula",
    "sign": "taking signs: not in the formula",
    "hash_attention": "code products are additions, as in the formula; (K + 1) v is not in it",
    **dict.fromkeys(
        ("gelu", "relu", "silu", "sigmoid", "hardswish", "hardsigmoid"), "activations are not in the paper's accounting"
    ),
    "softmax": "only its length enters the formula, as the multiplications of the scale",
    "add": "residual connections and other sums are not in the paper's accounting",
    "mul": "elementwise products are not in the paper's accounting",
    "mean": "pooling is not in the paper's accounting",
}
OTHERWISE = "not in the paper's accounting"


@dataclass(frozen=True)
class DifferenceLine:
    """One item as both conventions count it. Differences are audited minus paper."""

    item: str
    paper: Ledger
    audited: Ledger
    why: str

    @property
    def muls(self) -> int:
        return self.audited.muls - self.paper.muls

    @property
    def adds(self) -> int:
        return self.audited.adds - self.paper.adds

    @property
    def other(self) -> Counts:
        """Audited arithmetic that is neither multiplication nor addition."""
        found = _arithmetic(self.audited)
        return kinds.counts({kind: found[kind] for kind in found if kind not in ("mul", "add", "fma")})

    def energy_pj(self, profile: Profile) -> float:
        """Picojoules of arithmetic; memory is left out, because the paper convention counts no bytes."""
        sides = [profile.kind_energies(ledger.entries) for ledger in (self.audited, self.paper)]
        after, before = (sum(energies[kind] for kind in kinds.ARITHMETIC) for energies in sides)
        return after - before


def difference(paper: Ledger, audited: Ledger) -> list[DifferenceLine]:
    """The lines between two ledgers of one model and input. Items without arithmetic are left out."""
    found = [(ledger.convention, ledger.input_shape) for ledger in (paper, audited)]
    if found != [("paper", paper.input_shape), ("audited", paper.input_shape)]:
        raise InputError(f"difference: ledgers of {found}: give the paper's and the audited one of the same input")
    sides = [ledger.group(_item) for ledger in (paper, audited)]
    nothing = paper.select(lambda entry: False)
    lines = []
    for item in dict.fromkeys([*sides[0], *sides[1]]):
        before, after = (side.get(item, nothing) for side in sides)
        if _arithmetic(before) or _arithmetic(after):
            lines.append(DifferenceLine(item, before, after, _reason(item)))
    return lines


def _arithmetic(ledger: Ledger) -> Counts:
    return kinds.counts({kind: ledger.counts[kind] for kind in kinds.ARITHMETIC})


def _item(entry: Entry) -> str:
    if not entry.core:
        return entry.part or _short(entry.op)
    return f"{entry.function.lstrip('_')}: {_short(entry.op)}" if entry.function else PAPER_CORE


def _short(op: str) -> str:
    name = op.split(".")[1] if "." in op else op
    return name.strip("_")


def _reason(item: str) -> str:
    function, _, op = item.partition(": ")
    keys = (function,) if function in REASONS else (op, function, item, function.rsplit(".", 1)[-1])
    return next((REASONS[key] for key in keys if key in REASONS), OTHERWISE)
