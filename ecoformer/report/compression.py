"""What a compression did to a model, as Markdown tables."""

from collections import Counter

from ecoformer.files.table import Column, Table, markdown, share
from ecoformer.model.low_rank import CompressionReport

LAYERS = (
    Column("layer", lambda layer: layer.name, left=True),
    Column("weight", lambda layer: f"{layer.rows} x {layer.columns}"),
    Column("rank", lambda layer: f"{layer.rank} of {min(layer.rows, layer.columns)}"),
    Column("parameters", lambda layer: f"{layer.params_before:,} -> {layer.params_after:,}"),
    Column("relative error", lambda layer: layer.relative_error, "{:.4f}"),
)
WHOLE = (
    Column("one image", 0, left=True),
    Column("before", 1, "{:,.0f}"),
    Column("after", 2, "{:,.0f}"),
    share("saves", lambda row: 1 - row[2] / row[1] if row[1] else None),
)
SKIPPED = (Column("left as they are", 0, left=True), Column("why", 1, left=True))
FIGURES = {"muls": "multiplications", "adds": "additions", "energy_pj": "energy, pJ"}


def compression_markdown(report: CompressionReport) -> str:
    """Tables of the whole model, the layers, and the reasons for what was skipped."""
    whole: list[tuple[str, float, float]] = [("parameters", report.params_before, report.params_after)]
    for convention, sides in report.ledger.items():
        for key, name in FIGURES.items():
            whole.append((f"{name} ({convention})", sides["before"][key], sides["after"][key]))
    tables = [Table(WHOLE, whole), Table(LAYERS, report.layers)]
    if report.skipped:
        firsts = {reason: name for name, reason in reversed(report.skipped.items())}
        counts = Counter(report.skipped.values()).items()
        tables.append(Table(SKIPPED, [(_and_more(firsts[reason], number), reason) for reason, number in counts]))
    return "\n\n".join([report.summary, *map(markdown, tables)])


def _and_more(name: str, number: int) -> str:
    return f"{name} and {number - 1} more" if number > 1 else name
