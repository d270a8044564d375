"""A study and an advice in words: tables for the terminal and Markdown, JSON."""

from __future__ import annotations

from typing import Any

from ecoformer.lab.sequence.advisor import Advice
from ecoformer.lab.sequence.crossover import describe
from ecoformer.lab.sequence.study import BASELINE, METRICS, Study
from ecoformer.lab.sequence.verdict import as_dicts, verdicts

Table = list[list[str]]


def as_json(study: Study) -> dict[str, Any]:
    """Everything: rows, crossovers with softmax attention, verdicts, and how it was measured."""
    return {
        "settings": study.settings,
        "rows": study.rows,
        "crossovers": study.crossovers(),
        "verdicts": as_dicts(verdicts(study)),
    }


def as_text(study: Study, markdown: bool = False) -> str:
    """A table per metric, kinds by tokens, with the range in which a kind costs less than softmax attention."""
    parts = []
    for metric in study.metrics():
        base = study.series(BASELINE, metric)
        table = [["kind", *map(str, study.tokens), f"costs less than {BASELINE}"]]
        for kind in study.kinds:
            points = study.series(kind, metric)
            cells = [_number(points.get(tokens)) for tokens in study.tokens]
            table.append([kind, *cells, "-" if kind == BASELINE else describe(points, base)])
        parts.append(_titled(METRICS[metric], table, markdown))
    sizes = {row["kind"]: row for row in study.rows if row["refused"] is None}
    table = [["kind", "million parameters", "operations without a rule"]]
    table += [[k, f"{r['params'] / 1e6:.2f}", ", ".join(r["uncounted"]) or "none"] for k, r in sizes.items()]
    parts.append(_titled(f"parameters at {max(study.tokens)} tokens", table, markdown))
    refused = [[row["kind"], str(row["tokens"]), row["refused"]] for row in study.rows if row["refused"]]
    if refused:
        parts.append(_titled("does not work", [["kind", "tokens", "reason"], *refused], markdown))
    found = [[v.claim, v.outcome, v.figures, v.reason] for v in verdicts(study)]
    if markdown:
        parts.append(_titled("verdicts", [["claim", "outcome", "figures", "why"], *found], markdown))
    else:
        lines = [f"  {outcome.upper()}: {claim}\n    {figures}\n    {why}" for claim, outcome, figures, why in found]
        parts.append("\n".join(["verdicts", *lines]))
    return "\n\n".join(parts)


def advice_text(advice: Advice, budget: dict[str, float], markdown: bool = False) -> str:
    """The ranking, the choice, and the caveats."""
    table = [["kind", "energy, mJ", "million parameters", "forward, s", "peak, MiB", "over budget"]]
    for row in advice.rows:
        if row["refused"]:
            continue
        figures = [row["audited_energy_mj"], row["params"] / 1e6, row["forward_s"], row["forward_mib"]]
        table.append([row["kind"], *map(_number, figures), ", ".join(row["over_budget"]) or "-"])
    limits = ", ".join(f"{key}={value:g}" for key, value in budget.items()) or "none"
    choice = f"least cost within the budget ({limits}): {advice.best or 'no kind'}"
    return "\n".join([_titled("ranking", table, markdown), "", choice, *(f"- {caveat}" for caveat in advice.caveats)])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _titled(title: str, table: Table, markdown: bool) -> str:
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in table]
        rule = f"|{' --- |' * len(table[0])}"
        return "\n".join([f"**{title}**", "", lines[0], rule, *lines[1:]])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([title, *(f"  {line}" for line in lines)])
