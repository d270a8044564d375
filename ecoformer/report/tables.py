"""Tables of a report: what a run measured, in words; what a compression did to a model."""

from collections import Counter
from typing import Any

from ecoformer.energy.summary import in_attention
from ecoformer.files.table import Column, Table, energy_text, markdown, share
from ecoformer.model.low_rank import CompressionReport

Rows = list[tuple[str, str]]

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


def figure_rows(figures: dict[str, Any]) -> Rows:
    """What a summary.json says, in words."""
    one, samples = ("an image", "images") if figures.get("seq_len") is None else ("a sample", "samples")
    convention = f"{figures.get('energy_convention')} convention, {figures.get('energy_profile')}"

    def said(key: str, form: str = "{:,}") -> str:
        return form.format(value) if isinstance(value := figures.get(key), int | float) else "-"

    rows = [
        ("top-1", said("top1", "{:.2f} %")),
        ("top-5", said("top5", "{:.2f} %")),
        ("loss", said("loss", "{:.4f}")),
        ("parameters", said("params")),
        ("multiplications", said("muls")),
        ("additions", said("adds")),
        (f"energy {one}", f"{energy_text(figures['energy_pj'])}, {convention}"),
        ("of that", in_attention(figures["attention_energy_pj"])),
        ("evaluation", said("images_per_second", f"{{:.0f}} {samples}/s")),
    ]
    if "train_images_per_second" in figures:
        rows.append(("training", said("train_images_per_second", f"{{:.0f}} {samples}/s")))
        rows.append(("time", said("duration_s", "{:.1f} s")))
    if figures.get("uncounted"):
        rows.append(("not counted", ", ".join(map(str, figures["uncounted"]))))
    return rows


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
        named = [(f"{firsts[why]} and {n - 1} more" if n > 1 else firsts[why], why) for why, n in counts]
        tables.append(Table(SKIPPED, named))
    return "\n\n".join([report.summary, *map(markdown, tables)])
