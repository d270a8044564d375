"""Sums picked by 0/1 codes at the share of ones that was measured, where a layer knows it.

The audited ledger charges one addition for every term of a product with a 0/1 code, because the codes' values are not
known when it counts. A code of 0 picks nothing: with the share of ones known, the rest of the terms can be taken off.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ecoformer.energy.kinds import counts
from ecoformer.energy.ledger import Entry, Ledger
from ecoformer.ops.codes.folded import bit_rows, distilled_attention

# Function whose products with codes are meant -> place of its share in the layer's `ones`: 0 queries, 1 keys.
CODE_SUMS = {function.__qualname__: place for function, place in ((distilled_attention, 0), (bit_rows, 1))}


def at_measured_shares(ledger: Ledger, model: nn.Module) -> Ledger:
    """The audited ledger with terms of code 0 left out, in layers that measured their share of ones at their fit.

    Products of scaled codes stay full multiply-adds: they run as such.
    """
    assert ledger.convention == "audited"
    return replace(ledger, entries=[_scaled(entry, model) for entry in ledger.entries])


def _scaled(entry: Entry, model: nn.Module) -> Entry:
    place = CODE_SUMS.get(entry.function)
    if place is None or not entry.op.startswith("aten.bmm"):
        return entry
    share = float(model.get_submodule(entry.attention).get_buffer("ones")[place])
    return replace(entry, counts=counts({**entry.counts, "add": round(share * entry.counts["add"])}))
