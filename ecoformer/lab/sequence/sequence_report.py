"""A study and an advice: tables for the terminal and Markdown, JSON, a plot per metric."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from ecoformer.files.table import Column, Table, markdown, render
from ecoformer.lab.sequence.crossover import crossovers, describe, interpolate
from ecoformer.lab.sequence.study import BASELINE, METRICS, Study
from ecoformer.lab.sequence.verdict import verdicts
from ecoformer.lab.subject import CONTROLS
from ecoformer.report.figures import draw_growth, legend, panels

FIGURE = "{:.4g}"


def as_json(study: Study) -> dict[str, Any]:
    """Everything: rows, crossovers with softmax attention, verdicts, and how it was measured."""
    return {
        "settings": study.settings,
        "rows": study.rows,
        "crossovers": study.crossovers(),
        "verdicts": [vars(verdict) for verdict in verdicts(study)],
    }


def as_text(study: Study, in_markdown: bool = False) -> str:
    """A table per metric, kinds by tokens, with the range in which a kind costs less than softmax attention."""
    parts = []
    for metric in study.metrics():
        base = study.series(BASELINE, metric)
        rows = [(kind, study.series(kind, metric)) for kind in study.kinds]
        columns = [
            Column("kind", 0, left=True),
            *(_at(tokens, wide=0 < place < len(study.tokens) - 1) for place, tokens in enumerate(study.tokens)),
            Column(
                f"costs less than {BASELINE}",
                lambda row, base=base: None if row[0] == BASELINE else describe(row[1], base),
                left=True,
            ),
        ]
        parts.append(_titled(METRICS[metric], columns, rows, in_markdown))
    sizes = {row["kind"]: row for row in study.rows if row["refused"] is None}
    columns = [
        Column("kind", "kind", left=True),
        Column("million parameters", "params", "{:.2f}", 1e6, left=True),
        Column("operations without a rule", lambda row: ", ".join(row["uncounted"]) or "none", left=True),
    ]
    parts.append(_titled(f"parameters at {max(study.tokens)} tokens", columns, list(sizes.values()), in_markdown))
    for key, title in (("refused", "does not work"), ("unmeasured", "could not be measured")):
        if left := [(row["kind"], row["tokens"], row[key]) for row in study.rows if row.get(key)]:
            parts.append(_titled(title, _texts("kind", "tokens", "reason"), left, in_markdown))
    if study.settings is not None:
        parts.append("measured with " + ", ".join(f"{key} {value}" for key, value in study.settings.items()))
    found = [(v.claim, v.outcome, v.figures, v.reason) for v in verdicts(study)]
    if in_markdown:
        parts.append(_titled("verdicts", _texts("claim", "outcome", "figures", "why"), found, in_markdown))
    else:
        lines = [f"  {outcome.upper()}: {claim}\n    {figures}\n    {why}" for claim, outcome, figures, why in found]
        parts.append("\n".join(["verdicts", *lines]))
    return "\n\n".join(parts)


def advice_text(advice: dict[str, Any], in_markdown: bool = False) -> str:
    """The ranking, the choice, and the caveats."""
    columns = [
        Column("kind", "kind", left=True),
        Column("energy, mJ", "audited_energy_mj", FIGURE, none="", left=True),
        Column("million parameters", "params", FIGURE, 1e6, left=True),
        Column("forward, s", "forward_s", FIGURE, none="", left=True),
        Column("peak, MiB", "forward_mib", FIGURE, none="", left=True),
        Column("over budget", lambda row: ", ".join(row["over_budget"]) or None, left=True),
    ]
    rows = [row for row in advice["rows"] if not row["refused"]]
    limits = ", ".join(f"{key}={value:g}" for key, value in advice["budget"].items()) or "none"
    choice = f"least cost within the budget ({limits}): {advice['best'] or 'no kind'}"
    caveats = [f"- {caveat}" for caveat in advice["caveats"]]
    return "\n".join([_titled("ranking", columns, rows, in_markdown), "", choice, *caveats])


def plot_metric(study: Study, metric: str, title: str) -> Figure:
    """Cost against tokens, a line per kind; rings mark where it crosses that of softmax attention."""
    figure, (axis,) = panels(1, 1, (8.5, 5.0))
    curves = {kind: study.series(kind, metric) for kind in study.kinds}
    points = [(kind, tokens, cost) for kind, curve in curves.items() for tokens, cost in curve.items()]
    draw_growth(axis, points, "tokens", METRICS[metric])
    base = curves.get(BASELINE, {})
    for line in list(axis.lines):
        kind = str(line.get_label())
        line.set(lw=2 if kind == BASELINE else 1.2, ls=":" if kind in CONTROLS else "-")
        for tokens in crossovers(curves[kind], base) if kind != BASELINE else ():
            cost = interpolate(base, tokens)
            assert cost is not None, f"{tokens} tokens lie outside {list(base)}"
            axis.plot([tokens], [cost], marker="o", markersize=10, fillstyle="none", color=line.get_color())
    axis.set_title(f"{title}\nrings: equal to {BASELINE}", fontsize=10, loc="left")
    legend(figure, [axis])
    return figure


def _at(tokens: int, wide: bool) -> Column:
    return Column(str(tokens), lambda row: row[1].get(tokens), FIGURE, none="", left=True, wide=wide)


def _texts(*headings: str) -> list[Column]:
    return [Column(heading, place, left=True) for place, heading in enumerate(headings)]


def _titled(title: str, columns: Sequence[Column], rows: Sequence[Any], in_markdown: bool) -> str:
    table = Table(columns, rows)
    return f"**{title}**\n\n{markdown(table)}" if in_markdown else render(table, "table", title)
