"""Differences add up, tables say the same in every format, plots have content."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from matplotlib.figure import Figure
from row_keys import ROW_KEYS

from ecoformer.energy import at_measured_shares, count, load_profile
from ecoformer.energy.difference import OTHERWISE, PAPER_CORE, difference
from ecoformer.energy.kinds import ARITHMETIC
from ecoformer.energy.ledger import Ledger, breakdown, differences
from ecoformer.errors import InputError
from ecoformer.files.table import saving
from ecoformer.lab.energy import energy_tables as tables
from ecoformer.lab.energy.cases import Case, cases
from ecoformer.lab.energy.command import witnesses
from ecoformer.lab.energy.plots import PARTS, part_name, plot_bits_anchors, plot_layers, plot_resolution
from ecoformer.run import process

PROFILE = load_profile("45nm_fp32")
SIZE = 96


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    chosen = cases(["pvt_v2_b0"], img_sizes=[SIZE, 128], num_bits=[4, 16], num_anchors=[10, 25])
    return [case.row("paper", PROFILE) for case in chosen]


def saved(row: dict, rows: list[dict], against: str) -> float | None:
    return saving(row, rows, against, same=tables.ALIKE)


@pytest.mark.parametrize("attention", ["stock", "msa", "ecoformer"])
def test_difference_lines_add_up(attention: str) -> None:
    case = Case("pvt_v2_b0", attention, SIZE)
    paper, audited = (case.count(convention) for convention in ("paper", "audited"))
    lines = difference(paper, audited)
    assert sum(line.muls for line in lines) == audited.muls - paper.muls
    assert sum(line.adds for line in lines) == audited.adds - paper.adds
    whole = audited.energy_pj(PROFILE) - paper.energy_pj(PROFILE)
    assert sum(line.energy_pj(PROFILE) for line in lines) == pytest.approx(whole)
    for kind in set(ARITHMETIC) - {"mul", "add", "fma"}:
        assert sum(line.other[kind] for line in lines) == audited.counts[kind]
    assert all(line.why != OTHERWISE for line in lines)


def test_difference_names_what_the_paper_leaves_out() -> None:
    """One block of stage 1: N = 24 * 24 tokens, H = 1, C = 32, 16 bits, 25 anchors."""
    case = Case("pvt_v2_b0", "ecoformer", SIZE)
    first = "stages.0.blocks.0.attn"
    ledgers = [case.count(c).select(lambda entry: entry.attention == first) for c in ("paper", "audited")]
    lines = {line.item: line for line in difference(*ledgers)}
    tokens, channels, bits, anchors = 24 * 24, 32, 16, 25
    assert lines["kernel: linalg_vector_norm"].muls == tokens * channels
    assert lines["per_head: bmm"].muls == lines["per_head: bmm"].adds == tokens * anchors * (channels + bits)
    assert lines["hash_attention: add"].muls == tokens * channels
    assert lines["features: exp2"].other == {"exp": tokens * anchors}
    assert lines["hash_attention: bmm"].adds == tokens * bits * (2 * channels + 1)
    assert lines["hash_attention: bmm"].muls == 0
    muls, _ = case.build().get_submodule(first).paper_core_ops(tokens)
    assert lines[PAPER_CORE].muls == -muls


def test_sweep_has_one_row_per_case(rows: list[dict]) -> None:
    assert len(rows) == 2 * (1 + 1 + 2 * 2)
    assert all(tuple(row) == ROW_KEYS for row in rows)
    assert [(r["num_bits"], r["num_anchors"]) for r in rows[2:6]] == [(4, 10), (4, 25), (16, 10), (16, 25)]
    stock = rows[0]
    assert (stock["attention"], stock["num_bits"], stock["num_anchors"]) == ("stock", None, None)
    energies = [row["attention_energy_pj"] for row in rows[2:6]]
    assert energies == sorted(energies)


def test_savings_are_against_the_same_model_and_size(rows: list[dict]) -> None:
    stock, msa, hashed = rows[0], rows[1], rows[2]
    assert saved(hashed, rows, "msa") == 1 - hashed["energy_pj"] / msa["energy_pj"]
    assert saved(hashed, rows, "stock") == 1 - hashed["energy_pj"] / stock["energy_pj"]
    assert saved(stock, rows, "stock") is None
    assert saved(hashed, rows[6:], "stock") is None
    shown = tables.summary_table(rows).texts[2]
    assert shown["vs msa"] == f"{100 * saved(hashed, rows, 'msa'):.1f} %"


def test_published_headline_and_its_other_baseline() -> None:
    """73 % of PVTv2-B0's energy against MSA is about 5 % against the stock model."""
    rows = [case.row("paper", PROFILE) for case in cases(["pvt_v2_b0"])]
    hashed = rows[2]
    assert round(100 * saved(hashed, rows, "msa")) == 73
    assert round(100 * saved(hashed, rows, "stock")) == 5
    assert "73 %" in tables.render_rows(rows, "table") and "5.4 %" in tables.render_rows(rows, "table")


def test_data_formats_carry_the_exact_figures(rows: list[dict]) -> None:
    assert json.loads(tables.render_rows(rows, "json")) == rows
    read = list(csv.DictReader(io.StringIO(tables.render_rows(rows, "csv"))))
    assert [int(row["muls"]) for row in read] == [row["muls"] for row in rows]
    assert [float(row["energy_pj"]) for row in read] == [row["energy_pj"] for row in rows]
    assert read[0]["num_bits"] == "" and read[0]["uncounted"] == ""


@pytest.mark.parametrize("format", ["table", "md", "latex"])
def test_texts_name_convention_profile_and_baselines(rows: list[dict], format: str) -> None:
    text = tables.render_rows(rows, format)
    assert "convention paper" in text and "45nm_fp32" in text and "against the stock model" in text
    shown = f"{rows[2]['energy_pj'] / 1e9:.3f}"
    assert shown in text
    if format == "md":
        table = [line for line in text.splitlines() if line.startswith("|")]
        assert len(table) == 2 + len(rows) and len({line.count("|") for line in table}) == 1
    if format == "latex":
        body = text.split("\\midrule\n")[1].split("\n\\bottomrule")[0].splitlines()
        assert len(body) == len(rows) and all(line.startswith("pvt\\_v2\\_b0 & ") for line in body)


def test_lower_bounds_are_called_so(rows: list[dict]) -> None:
    incomplete = [{**rows[0], "uncounted": ["aten.mystery.default"]}]
    text = tables.render_rows(incomplete, "table")
    assert "LOWER BOUNDS" in text and "aten.mystery.default" in text


@pytest.mark.parametrize("by", ["stage", "layer", "module", "op", "kind"])
def test_breakdown_adds_up(by: str) -> None:
    ledger = Case("pvt_v2_b0", "ecoformer", SIZE).count("audited")
    table = breakdown(ledger, PROFILE, by).texts
    assert sum(float(line["mJ"]) for line in table) == pytest.approx(
        ledger.energy_pj(PROFILE) / 1e9, abs=1e-4 * len(table)
    )
    if by == "stage":
        assert [line["stage"] for line in table][:2] == ["patch_embed", "stages.0"]


def test_layers_plot_stacks_every_part() -> None:
    ledgers = {name: Case("pvt_v2_b0", name, SIZE).count("audited") for name in ("stock", "ecoformer")}
    figure = plot_layers(ledgers, PROFILE, "title")
    for axis, ledger in zip(figure.axes, ledgers.values(), strict=True):
        drawn = sum(bar.get_height() for bar in axis.patches)
        assert drawn == pytest.approx(ledger.energy_pj(PROFILE) / 1e9)
        assert {part_name(entry) for entry in ledger.entries} == set(PARTS)


def test_sweep_plots(rows: list[dict]) -> None:
    one_code = [row for row in rows if row["num_bits"] in (None, 16) and row["num_anchors"] in (None, 25)]
    resolution = plot_resolution(one_code)
    assert [len(axis.lines) for axis in resolution.axes] == [3, 3]
    assert list(resolution.axes[0].lines[0].get_ydata()) == [
        row["energy_pj"] / 1e9 for row in one_code if row["attention"] == "stock"
    ]
    maps = plot_bits_anchors([row for row in rows if row["img_size"] == SIZE])
    assert isinstance(maps, Figure) and maps.axes[0].images[0].get_array().shape == (2, 2)


def test_plots_refuse_what_they_cannot_draw(rows: list[dict]) -> None:
    with pytest.raises(InputError, match="at least 2 image sizes, got 1"):
        plot_resolution(rows[:6])
    with pytest.raises(InputError, match="one row per pair"):
        plot_bits_anchors(rows)
    with pytest.raises(InputError, match="got no ledger"):
        plot_layers({}, PROFILE, "title")


@pytest.fixture(scope="module")
def pair() -> tuple[Ledger, Ledger]:
    return tuple(Case("pvt_v2_b0", kind, SIZE).count("audited") for kind in ("stock", "msa"))


@pytest.mark.parametrize("by", ["stage", "layer", "module", "op", "kind"])
def test_a_ledger_shows_itself(by: str, pair: tuple[Ledger, Ledger]) -> None:
    text = pair[0].table(by)
    assert max(map(len, text.splitlines())) <= 100 and "convention audited, 45nm_fp32" in text
    assert pair[0].to_markdown(by).count("|") > 10
    with pytest.raises(InputError, match="by='stages' does not exist: choose one of stage, layer, module, op, kind"):
        pair[0].table("stages")


def test_the_unit_of_a_table_follows_what_it_shows() -> None:
    """A module of nanojoules has digits too, and its title says what the whole takes."""
    small, twice = (count(torch.nn.Linear(8, width), torch.zeros(2, 8)) for width in (4, 8))
    title, heading, line = small.table("op").splitlines()
    assert title.endswith("45nm_fp32: 301.6 pJ") and "nJ" in heading and "0.3016" in line
    before, _, change = twice.diff(small).splitlines()[-1].split()[-3:]
    assert (before, change) == ("0.6032", "-0.3016")


def test_a_ledger_as_json_adds_up(pair: tuple[Ledger, Ledger]) -> None:
    found = json.loads(pair[0].to_json(PROFILE))
    assert found["energy_pj"] == pair[0].energy_pj(PROFILE) and found["input_shape"] == [1, 3, SIZE, SIZE]
    assert sum(entry["energy_pj"] for entry in found["entries"]) == pytest.approx(found["energy_pj"])
    assert found["attention_energy_pj"] == pair[0].attention().energy_pj(PROFILE)


def test_the_difference_of_two_ledgers_adds_up(pair: tuple[Ledger, Ledger]) -> None:
    *parts, whole = differences(*pair, PROFILE, "layer").texts
    assert whole["layer"] == "all" and float(whole["mJ"]) > 0
    assert sum(float(line["mJ"]) for line in parts) == pytest.approx(float(whole["mJ"]), abs=1e-4 * len(parts))
    assert {line["layer"].split(".")[0] for line in parts} == {"stages"}  # the rest is the same
    first, *_, last = pair[0].diff(pair[1]).splitlines()
    assert last.split()[0] == "all" and first.endswith("more in the other")


def test_a_difference_says_that_inputs_differ() -> None:
    small, large = (count(torch.nn.Linear(8, 4), torch.zeros(rows, 8)) for rows in (2, 6))
    assert small.diff(large).splitlines()[0].endswith("more in the other, of input 6x8 where this one has 2x8")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda ledger: ledger.diff(3), r"other=3 is no ledger: give what ecoformer\.energy\.count returns$"),
        (lambda ledger: ledger.diff(replace(ledger, convention="paper")), "by convention=paper, not audited: count it"),
        (lambda ledger: ledger.diff(ledger, by=["layer"]), r"by=\['layer'\] does not exist: .* op, kind$"),
        (lambda ledger: ledger.to_markdown({}), r"by=\{\} does not exist"),
        (
            lambda ledger: ledger.table(format="html"),
            "format='html' does not exist: choose one of table, json",
        ),
        (lambda ledger: ledger.to_json(3), "profile '3' does not exist"),
        (lambda ledger: difference(ledger, ledger), "give the paper's and the audited one of the same input$"),
        (
            lambda ledger: at_measured_shares(replace(ledger, convention="paper"), torch.nn.Linear(2, 2)),
            "^convention=paper has no sums .* with audited$",
        ),
    ],
)
def test_what_a_ledger_cannot_show_is_one_line(wrong: Callable, message: str, pair: tuple[Ledger, Ledger]) -> None:
    with pytest.raises(InputError, match=message):
        wrong(pair[0])


def test_ledgers_differ_by_kind(pair: tuple[Ledger, Ledger]) -> None:
    """The kinds are a choice of `diff` as of `table`; together they are the ledger."""
    kinds = pair[0].by_kind()
    assert {kind: part.counts for kind, part in kinds.items()} == {k: {k: n} for k, n in pair[0].counts.items()}
    *parts, whole = differences(*pair, PROFILE, "kind").texts
    assert sum(float(line["mJ"]) for line in parts) == pytest.approx(float(whole["mJ"]), abs=1e-4 * len(parts))
    assert "fma" in pair[0].diff(pair[1], by="kind")


def test_bytes_without_a_price_have_no_share() -> None:
    """A model that only moves data takes no energy under a profile of arithmetic."""
    text = count(torch.nn.Flatten(), torch.zeros(2, 3, 4).mT).table("kind")
    assert text.split()[-2:] == ["0.0000", "-"]


def test_the_counter_loads_no_framework() -> None:
    code = (
        "import sys, torch\nfrom ecoformer.energy import count\n"
        "ledger = count(torch.nn.Linear(8, 4), torch.zeros(2, 8))\nledger.table(), ledger.to_json()\n"
        "others = {'hydra', 'omegaconf', 'wandb', 'sklearn', 'scipy', 'matplotlib', 'timm', 'fvcore'}\n"
        "print(sorted(others & sys.modules.keys()), ledger.muls)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=process.environment())
    assert done.stdout == "[] 64\n", done.stderr


def test_witnesses_stand_beside_our_figures() -> None:
    model, ledger = Case("pvt_v2_b0", "msa", 64).build("cpu"), Case("pvt_v2_b0", "msa", 64).count("audited")
    found = witnesses(model, 64)
    products = sum(entry.counts["fma"] for entry in ledger.entries)
    assert found["witness_torch"] == products
    core = ledger.attention().counts["fma"]
    assert found["witness_fvcore"] < products  # the fused attention is not in it
    assert found["witness_fvcore"] == pytest.approx(products - core, rel=0.03)  # nor are norms in ours
    assert witnesses(torch.nn.Sequential(torch.nn.Linear(4, 4)), 64)["witness_torch"].startswith("unavailable: ")
