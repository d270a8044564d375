"""The speed section of results/speed/README.md is what the results say, and says it whole."""

import json
from pathlib import Path

import pytest

from ecoformer.cli import speed_section as script
from ecoformer.lab.speed.section import END, START, replace_section, section

ROOT = Path(__file__).parents[2]


def row(attention, rate, img_size=224, **others):
    shared = {"model": "m", "mode": "eval", "batch_size": 2, "precision": "fp32", "threads": 1, "machine": "here"}
    return shared | {"attention": attention, "images_per_second": rate, "img_size": img_size, "torch": "2"} | others


def test_the_document_says_what_was_measured():
    document = (ROOT / "results" / "speed" / "README.md").read_text()
    assert replace_section(document, section(ROOT / "results" / "speed")) == document, (
        "run python scripts/speed_section.py --write results/speed/README.md"
    )


def test_rows_and_growth(tmp_path):
    rows = [row("stock", 20.0, ratio_to_stock=1.0, peak_mib=99.6), row("msa", 5.04, environment={"MALLOC_X": "1"})]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    growth = [row("msa", rate, img_size) for img_size, rate in ((224, 16.0), (448, 1.0), (336, 4.0))]
    (tmp_path / "growth.json").write_text(json.dumps(growth))
    lines = section(tmp_path).splitlines()
    assert "here, 1 thread, fp32, batch 2, 224 px, torch 2" in lines[0]
    assert lines[4:6] == [
        "| m | eval | stock | 20.0 | 1.00 | 100 | default |",
        "| m | eval | msa | 5.0 |  |  | MALLOC_X=1 |",
    ]
    assert lines[-1].startswith("- msa: a token at 448 px takes 4.00 times its time at 224 px")


def test_writes_between_the_markers_only(tmp_path, capsys):
    (tmp_path / "a.json").write_text(json.dumps([row("stock", 20.0)]))
    document = tmp_path / "R.md"
    document.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    assert script.main(["--results", str(tmp_path), "--write", str(document)]) == 0
    text = document.read_text()
    assert text.startswith(f"before\n{START}\nMeasured") and text.endswith(f"\n{END}\nafter\n") and "old" not in text
    assert script.main(["--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() in text


@pytest.mark.parametrize(
    ("results", "document", "message"),
    [
        (None, None, "holds no results"),
        ("{", None, "holds no rows of benchmark.py"),
        ('[{"model": 1}]', None, "holds no rows of benchmark.py"),
        ("good", None, "cannot read"),
        ("good", "no markers", "the document needs one line"),
    ],
)
def test_refusals(tmp_path, one_line, results, document, message):
    if results is not None:
        (tmp_path / "a.json").write_text(json.dumps([row("stock", 20.0)]) if results == "good" else results)
    if document is not None:
        (tmp_path / "R.md").write_text(document)
    assert message in one_line(script.main, "--results", tmp_path, "--write", tmp_path / "R.md")
