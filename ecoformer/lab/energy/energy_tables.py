"""What the ledger says, as tables: models side by side, breakdowns, differences, published figures, prices."""

from collections.abc import Sequence
from typing import Any

from ecoformer.energy.difference import DifferenceLine
from ecoformer.energy.kinds import KINDS
from ecoformer.energy.ledger import MJ
from ecoformer.energy.profile import Profile
from ecoformer.files import json_text
from ecoformer.files.table import Column, Table, render, saves, to_csv
from ecoformer.lab.energy.published import Comparison
from ecoformer.lab.subject import short_name
from ecoformer.nn.inputs import in_words, takes_sequences

NOTES = {
    "paper": "paper: the published accounting; Conv2d, Linear and LayerNorm layers and attention cores, all else zero.",
    "audited": "audited: every operation of the modules' own form, priced by kind; G mul and G add count those inside "
    "multiply-adds. On CPU EcoFormer runs a fused form of the same sums, which moves fewer bytes.",
}
BASELINES = (
    "mJ are modelled, not measured (1 mJ = 10^9 pJ). Savings are in energy. In the paper's accounting PVTv2-B0 saves "
    "73 % against MSA (the published figure) and about 5 % against the stock model."
)
ALIKE = ("model", "architecture", "img_size", "convention", "profile")  # rows that savings compare


def summary_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of `Case.row` for reading: whole model and attention only side by side, savings against stock and MSA."""
    columns = [
        Column("model", "model", left=True),
        Column("attention", "attention", left=True),
        _size(rows),
        Column("bits", "num_bits", wide=True),
        Column("anchors", "num_anchors", wide=True),
        Column("params M", "params", "{:.2f}", 1e6, wide=True),
        Column("G mul", "muls", "{:.3f}", 1e9),
        Column("G add", "adds", "{:.3f}", 1e9, wide=True),
        Column("mJ", "energy_pj", "{:.3f}", MJ),
        saves("vs stock", rows, "stock", "energy_pj", ALIKE),
        saves("vs msa", rows, "msa", "energy_pj", ALIKE),
        Column("attn G mul", "attention_muls", "{:.3f}", 1e9, wide=True),
        Column("attn G add", "attention_adds", "{:.3f}", 1e9, wide=True),
        Column("attn mJ", "attention_energy_pj", "{:.3f}", MJ),
        saves("attn vs stock", rows, "stock", "attention_energy_pj", ALIKE, wide=True),
        saves("attn vs msa", rows, "msa", "attention_energy_pj", ALIKE, wide=True),
        Column("uncounted", lambda row: ", ".join(row["uncounted"]) or "none", left=True, wide=not _lacking(rows)),
    ]
    if any("checkpoint" in row for row in rows):
        columns.insert(2, Column("checkpoint", lambda row: short_name(row.get("checkpoint")), none="", left=True))
    if "witness_torch" in rows[0]:
        columns += [_witness("fvcore"), _witness("torch")]
    return Table(columns + ([Column("measured", "measured")] if "measured" in rows[0] else []), rows)


def _size(rows: Sequence[dict[str, Any]]) -> Column:
    """Pixels or tokens, whatever the models take; with its unit in each row where they take both."""
    units = {"tokens" if takes_sequences(model) else "px" for model in {row["model"] for row in rows}}
    if len(units) == 1:
        return Column(units.pop(), "img_size")
    return Column("size", lambda row: in_words(row["model"], row["img_size"]))


def _witness(name: str) -> Column:
    """What another counter says, and as a share of our multiplications."""

    def text(row: dict[str, Any]) -> str:
        found = row[f"witness_{name}"]
        return "unavailable" if isinstance(found, str) else f"{found / 1e9:.3f} ({found / row['muls']:.1%})"

    return Column(f"{name} G mac", text)


def difference_table(lines: Sequence[DifferenceLine], profile: Profile) -> Table:
    """The way from the paper's figure to the audited one; the last line is the sum of those above it."""
    rows = [(line.item, line.muls, line.adds, line.other, line.energy_pj(profile), line.why) for line in lines]
    muls, adds, energy = (sum(row[place] for row in rows) for place in (1, 2, 4))  # type: ignore[misc]
    columns = [
        Column("item", 0, left=True),
        Column("mul", 1, "{:+,}"),
        Column("add", 2, "{:+,}"),
        Column("other", lambda row: ", ".join(f"{n:,} {kind}" for kind, n in row[3].items()) or None, wide=True),
        Column("mJ", 4, "{:+.5f}", MJ),
        Column("why", 5, left=True),
    ]
    return Table(columns, [*rows, ("audited - paper", muls, adds, {}, energy, "the sum of the lines above")])


def published_table(comparisons: Sequence[Comparison]) -> Table:
    """Published figures beside ours, in billions."""
    names = {"muls": "#Mul B", "adds": "#Add B", "energy_pj": "energy B pJ"}
    columns = [
        Column("model", lambda c: c.model, left=True),
        Column("quantity", lambda c: names[c.quantity]),
        Column("published", lambda c: c.printed),
        Column("ours", lambda c: c.ours, "{:.5f}"),
        Column("ours rounded", lambda c: c.rounded),
        Column("difference", lambda c: c.difference, "{:+.5f}"),
        Column("agrees", lambda c: "yes" if c.agrees else "no"),
        Column("note", lambda c: c.note, left=True),
    ]
    return Table(columns, comparisons)


def profile_table(profile: Profile) -> Table:
    """Every price of a profile with its source, or the assumption behind it."""
    columns = [
        Column("precision", 0),
        Column("kind", 1),
        Column("pJ", lambda row: row[2].pj, "{:g}"),
        Column("um2", lambda row: row[2].um2, "{:g}", none="no figure"),
        Column("basis", lambda row: "assumption" if row[2].assumed else "source"),
        Column("origin", lambda row: row[2].origin, left=True),
    ]
    prices = [(p.name, kind, p.prices[kind]) for p in profile.precisions.values() for kind in KINDS]
    return Table(columns, [row for row in prices if row[2].origin])


def render_rows(rows: Sequence[dict[str, Any]], format: str) -> str:
    """Rows of `Case.row` in any format; JSON and CSV carry the exact figures under their own keys."""
    if format == "json":
        return json_text(rows, indent=2)
    if format == "csv":
        return to_csv(rows)
    first = rows[0]
    title = f"Energy, convention {first['convention']}, profile {first['profile']}"
    notes = [NOTES[first["convention"]], BASELINES]
    if "witness_torch" in first:
        notes.append(
            "fvcore and torch count multiply-adds (in parentheses: as a share of our multiplications); neither knows "
            "codes, and what they have no rule for is left out: fused attention by fvcore, all but products by torch."
        )
    if unseen := list(dict.fromkeys(row["model"] for row in rows if row["attention_energy_pj"] is None)):
        notes.append(
            f"No attention recognised in {', '.join(unseen)}: nothing there is a product of two activations that, "
            "normalised, weighs a third. Attention-only figures are left out, which does not mean that they are zero."
        )
    if _lacking(rows):
        notes.append("LOWER BOUNDS: operations listed as uncounted ran but have no rule.")
    return render(summary_table(rows), format, title, notes)


def _lacking(rows: Sequence[dict[str, Any]]) -> bool:
    return any(row["uncounted"] for row in rows)
