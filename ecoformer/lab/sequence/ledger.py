"""Ledger rows of the study: one kind at one number of tokens, counted on meta tensors.

All blocks of an encoder are alike, so one is counted and multiplied; nothing is allocated.
"""

from typing import Any

import torch

from ecoformer.energy import count, load_profile
from ecoformer.errors import InputError
from ecoformer.lab.sequence.encoder import Kind, Shape

BYTES = 4  # of a float32


def ledger_row(kind: Kind, shape: Shape, tokens: int) -> dict[str, Any]:
    """Cost of one sequence. Where the kind does not work with the tokens, the row says why in `refused`.

    Keys: kind, shape, tokens, params, weight_mib, written_mib (results of all operations of a pass, which bounds what
    training keeps), and per convention muls, adds and energy_mj; uncounted.
    """
    row: dict[str, Any] = {"kind": kind.label, "shape": shape.name, "tokens": tokens, "refused": None}
    prices = load_profile("45nm_fp32")
    try:
        block = kind.build(shape, tokens, layers=1)
        sequence = torch.empty(1, tokens, shape.width, device="meta")
        ledgers = {name: count(block, sequence, convention=name, strict=False) for name in ("paper", "audited")}
    except InputError as error:
        return row | {"refused": str(error)}
    params = shape.layers * ledgers["paper"].params
    row |= {"params": params, "weight_mib": params * BYTES / 2**20}
    row["written_mib"] = shape.layers * ledgers["audited"].counts["written_bytes"] / 2**20
    for name, ledger in ledgers.items():
        row[f"{name}_muls"], row[f"{name}_adds"] = shape.layers * ledger.muls, shape.layers * ledger.adds
        row[f"{name}_energy_mj"] = shape.layers * ledger.energy_pj(prices) / 1e9
    row["uncounted"] = ledgers["audited"].uncounted
    return row
