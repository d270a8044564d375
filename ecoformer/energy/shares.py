"""Sums without the terms that are 0: of 0/1 codes at the share of ones that was measured, of ternary weights.

The audited ledger charges one addition for every term of a product with a 0/1 code or a ternary weight, because it does
not look at values. A 0 picks nothing: where a layer knows its share of others, the rest of the terms can be taken off.
"""

from dataclasses import replace

from torch import nn

from ecoformer.energy.kinds import counts
from ecoformer.energy.ledger import Entry, Ledger
from ecoformer.errors import InputError
from ecoformer.nn.ternary import TernaryLinear
from ecoformer.ops.codes.folded import bit_rows, distilled_attention
from ecoformer.ops.codes.ternary import TernaryAffine

# Function whose products with codes are meant -> place of its share in the layer's `ones`: 0 queries, 1 keys.
CODE_SUMS = {function.__qualname__: place for function, place in ((distilled_attention, 0), (bit_rows, 1))}


def at_measured_shares(ledger: Ledger, model: nn.Module) -> Ledger:
    """The audited ledger with terms of 0 left out, in layers that measured their share of ones at their fit or have
    ternary weights.

    Products of scaled codes stay full multiply-adds: they run as such.
    """
    if ledger.convention != "audited":
        raise InputError(f"convention={ledger.convention} has no sums of codes to leave out of: count with audited")
    layers = dict(model.named_modules())  # the model itself may be an attention layer
    adds = [_left(entry, _share(entry, layers.get(entry.attention, model))) for entry in ledger.entries]
    paired = zip(ledger.entries, adds, strict=True)
    return replace(ledger, entries=[replace(entry, counts=counts({**entry.counts, "add": n})) for entry, n in paired])


def _left(entry: Entry, share: float) -> int:
    """The additions that are left: all of those that come with a shift, of shifted values, which have no terms of 0."""
    whole = entry.counts["shift"]
    return whole + round(share * (entry.counts["add"] - whole))


def _share(entry: Entry, layer: nn.Module) -> float:
    """Of the terms of the entry's products with codes that are not 0; 1 where nothing is known."""
    if entry.function == TernaryAffine.__call__.__qualname__ and entry.counts["add"]:
        codes = getattr(layer, "codes", None)
        return codes.share if isinstance(codes, TernaryLinear) and not entry.op.startswith("aten.addcmul") else 1.0
    place = CODE_SUMS.get(entry.function)
    ones = dict(layer.named_buffers()).get("ones") if place is not None else None
    return float(ones[place]) if ones is not None and entry.op.startswith("aten.bmm") else 1.0
