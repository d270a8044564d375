"""Which kind costs least at a number of tokens, a width and a budget. Accuracy is not advised."""

import math
from typing import Any

from ecoformer.errors import InputError
from ecoformer.lab.sequence.crossover import interpolate
from ecoformer.lab.sequence.encoder import Kind, Shape
from ecoformer.lab.sequence.study import ledger_row
from ecoformer.lab.subject import CONTROLS

BUDGETS = {
    "energy_mj": "audited_energy_mj",
    "params": "params",
    "weight_mib": "weight_mib",
    "time_s": "forward_s",
    "memory_mib": "forward_mib",
}
CAVEATS = (
    f"Accuracy is not advised: a cheaper attention may be worth no more than the controls {', '.join(CONTROLS)}; train "
    "and compare.",
    "Energy is modelled (audited convention, arithmetic alone, 45nm_fp32), not measured.",
)


def parse_budget(text: str) -> dict[str, float]:
    """Limits from "energy_mj=5,params=50e6". Raises InputError for anything else."""
    limits: dict[str, float] = {}
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        if key not in BUDGETS:
            raise InputError(f"--budget {text}: {key!r} is no limit; choose from {', '.join(BUDGETS)}")
        if key in limits:
            raise InputError(f"--budget {text}: {key} is given twice: give it once")
        try:
            limits[key] = float(value)
        except ValueError as error:
            raise InputError(f"--budget {text}: {value!r} is no number") from error
        if not 0 < limits[key] < math.inf:
            raise InputError(f"--budget {text}: {key} must be a finite number above 0")
    return limits


def advise(
    kinds: list[str],
    shape: Shape,
    tokens: int,
    budget: dict[str, float],
    measured: dict[tuple[str, int], dict[str, float]],
) -> dict[str, Any]:
    """Rank the kinds by measured time where all of them have one at these tokens, else by audited energy.

    `measured` holds figures of this shape; between measured token counts they are interpolated, beyond them they are
    not known. The controls are listed last and never chosen.

    Returns `best`, the first kind within the budget if any is, `budget`, `rows` of all kinds from cheap to dear, and
    `caveats`, what to mind. Raises InputError if a limit needs a measurement that is missing.
    """
    rows = [ledger_row(Kind.parse(kind), shape, tokens) for kind in kinds]
    for row in rows:
        for figure in ("forward_s", "forward_mib"):
            points = {n: found[figure] for (kind, n), found in measured.items() if kind == row["kind"]}
            row[figure] = interpolate(points, tokens)
    usable = [row for row in rows if row["refused"] is None]
    for key in budget:
        if BUDGETS[key] in ("forward_s", "forward_mib") and all(row[BUDGETS[key]] is None for row in usable):
            raise InputError(
                f"--budget {key} needs measurements of {shape.width} channels around {tokens} tokens: measure into "
                "--out first, or set another limit"
            )
    timed = all(row["forward_s"] is not None for row in usable)
    metric = "forward_s" if timed else "audited_energy_mj"
    for row in usable:
        over = [key for key, limit in budget.items() if row[BUDGETS[key]] is None or row[BUDGETS[key]] > limit]
        row["over_budget"] = over
    usable.sort(key=lambda row: (row["kind"] in CONTROLS, row[metric]))
    best = next((r["kind"] for r in usable if not r["over_budget"] and r["kind"] not in CONTROLS), None)
    caveats = [f"Ranked by {'measured time of a forward pass' if timed else 'audited energy'}.", *CAVEATS]
    if not timed:
        caveats.append("No measurement covers all kinds here: memory traffic and kernel speed can turn the order.")
    refused = [f"{row['kind']} does not work here: {row['refused']}" for row in rows if row["refused"]]
    rows = usable + [row for row in rows if row["refused"]]
    return {"best": best, "budget": budget, "rows": rows, "caveats": caveats + refused}
