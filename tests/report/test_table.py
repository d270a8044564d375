"""A table in every format, and what fits a terminal."""

import json

import pytest

from ecoformer.files.table import Column, Table, render, saving, share

COLUMNS = [
    Column("model", "model", left=True),
    Column("mJ", "pj", "{:.2f}", 1e9),
    share("saved", "saved", wide=True),
    Column("note", "note", none="", left=True, wide=True),
]
ROWS = [
    {"model": "a_b", "pj": 2.5e9, "saved": 0.734, "note": "x|y"},
    {"model": "c", "pj": 1e9, "saved": None, "note": None},
]


def test_every_format_says_the_same():
    table = Table(COLUMNS, ROWS)
    assert json.loads(render(table, "json")) == [
        {"model": "a_b", "mJ": 2.5, "saved": pytest.approx(73.4), "note": "x|y"},
        {"model": "c", "mJ": 1.0, "saved": None, "note": None},
    ]
    assert render(table, "csv").splitlines() == ["model,mJ,saved,note", "a_b,2.50,73.4 %,x|y", "c,1.00,-,"]
    assert render(table, "md", "T", ["N"]).splitlines() == [
        *("**T**", "", "| model | mJ | saved | note |", "|---|---:|---:|---|"),
        *("| a_b | 2.50 | 73.4 % | x\\|y |", "| c | 1.00 | - |  |", "", "N"),
    ]
    assert "a\\_b & 2.50 & 73.4 \\% & x|y \\\\" in render(table, "latex").splitlines()
    _, *shown = (line.split() for line in render(table, "table").splitlines())
    assert shown == [["a_b", "2.50", "73.4", "%", "x|y"], ["c", "1.00", "-"]]


def test_a_terminal_gets_what_fits_and_the_names_of_the_rest():
    rows = [{**ROWS[0], "note": "n" * 90}, {**ROWS[1], "model": "m" * 20}]
    *lines, last = render(Table(COLUMNS, rows), "table").splitlines()
    assert max(map(len, lines)) <= 100 and last == "no room for: note"
    assert "73.4 %" in lines[1], "only as many columns as must go"
    assert "n" * 90 in render(Table(COLUMNS, rows), "csv")


def test_what_has_no_figure_saves_nothing():
    rows = [{"attention": "stock", "energy_pj": 2.0}, {"attention": "msa", "energy_pj": None}]
    assert saving(rows[1], rows, "stock") is None and saving(rows[0], rows, "msa") is None


def test_a_terminal_table_cuts_no_figure():
    columns = [Column(f"a rather long heading {n}", lambda row, n=n: row + n) for n in range(8)]
    lines = render(Table(columns, [123456.25]), "table").splitlines()
    assert lines[0].split("  ") == [column.heading for column in columns]
    assert lines[1].split() == [str(123456.25 + n) for n in range(8)]
    narrow = [Column(c.heading, c.of, wide=n > 1) for n, c in enumerate(columns)]
    *shown, left_out = render(Table(narrow, [123456.25]), "table").splitlines()
    assert max(map(len, shown)) <= 100 and left_out.startswith("no room for: a rather long heading")


def test_signs_of_the_format_in_headings_and_titles_of_two_lines():
    table = Table([Column("|x|", "model")], ROWS)
    assert render(table, "md").splitlines()[0] == "| \\|x\\| |"
    assert render(table, "latex", "one\ntwo", ["three"]).splitlines()[:3] == ["% one", "% two", "% three"]
