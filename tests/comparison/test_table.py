"""The comparison table: savings by hand, and no baseline that is not there."""

from ecoformer.report.comparison import comparison_table
from ecoformer.report.table import markdown


def row(attention, energy, attention_energy):
    return {
        "attention": attention,
        "top1": 98.7654,
        "params": 3_400_000,
        "muls": 2_000_000,
        "adds": 1_500_000,
        "energy_pj": energy,
        "attention_energy_pj": attention_energy,
        "images_per_second": 123.4,
    }


def test_savings_are_against_named_baselines():
    rows = [row("stock", 4e6, 1e6), row("msa", 8e6, 5e6), row("ecoformer", 3e6, 0.5e6)]
    table = comparison_table(rows)
    header, cells = table.headings, table.cells
    assert header == [
        *("attention", "top-1 %", "params M", "#Mul M", "#Add M"),
        *("energy µJ", "saves vs stock", "saves vs msa", "attention only µJ", "saves vs stock", "saves vs msa"),
        "images/s",
    ]
    assert cells[0] == ["stock", "98.77", "3.40", "2", "1.5", "4", "-", "50.0 %", "1", "-", "80.0 %", "123"]
    assert cells[1][6:8] == ["-100.0 %", "-"]
    assert cells[2][5:] == ["3", "25.0 %", "62.5 %", "0.5", "50.0 %", "90.0 %", "123"]


def test_without_a_baseline_there_is_no_saving():
    table = comparison_table([row("ecoformer", 3e6, 0.5e6)])
    header, cells = table.headings, table.cells
    assert not any("saves" in name for name in header)
    assert len(cells[0]) == len(header)


def test_markdown_has_one_line_a_row():
    lines = markdown(comparison_table([row("stock", 4e6, 1e6), row("msa", 8e6, 5e6)])).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
