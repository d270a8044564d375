"""`ecoformer report`: one HTML file that needs nothing else, of a run and of a folder of runs."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ecoformer.cli import report
from ecoformer.files.table import Column, Table, markdown
from ecoformer.report import html

VOID = {"meta", "img"}


class Page(HTMLParser):
    """What a report holds; every tag that it opens must be closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.cells: list[str] = []
        self.pictures: list[bytes] = []
        self.tags: set[str] = set()
        text = path.read_text(encoding="utf-8")
        assert "http:" not in text and "https:" not in text and 'name="viewport"' in text
        self.feed(text)
        assert not self.open and "script" not in self.tags and "link" not in self.tags

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "img":
            source = dict(attrs)["src"] or ""
            assert source.startswith("data:image/png;base64,")
            self.pictures.append(base64.b64decode(source.partition(",")[2], validate=True))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def test_report_of_a_run(digits_runs: Callable[[str], Path], tmp_path: Path) -> None:
    folder = digits_runs("ecoformer")
    shutil.copyfile(folder / "hash_fits.png", tmp_path / "code_maps.png")
    (tmp_path / "run").mkdir()
    for path in folder.iterdir():
        if path.is_file():
            shutil.copyfile(path, tmp_path / "run" / path.name)
    shutil.copyfile(tmp_path / "code_maps.png", tmp_path / "run" / "code_maps.png")
    assert report.main([str(tmp_path / "run")]) == 0
    page = Page(tmp_path / "run" / "report.html")
    assert page.headings == [
        *("Figures", "Training", "Hash functions", "Ledger", "Pictures", "Provenance", "Settings", "Console")
    ]
    assert len(page.pictures) == 3 and all(picture.startswith(b"\x89PNG") for picture in page.pictures)
    summary = json.loads((folder / "summary.json").read_text())
    assert {f"{summary['top1']:.2f} %", "stages.0", "finished", "train.epochs", "started"} <= set(page.cells)
    assert not list((tmp_path / "run").glob("*.tmp"))

    # A run that was killed at its start, before there were any figures.
    for name in (
        "summary.json",
        "best.pt",
        "last.pt",
        "metrics.jsonl",
        "metrics.csv",
        "provenance.json",
        "console.log",
    ):
        (tmp_path / "run" / name).unlink()
    assert report.main([str(tmp_path / "run"), "--out", str(tmp_path / "page.html")]) == 0
    assert Page(tmp_path / "page.html").headings == ["Figures", "Ledger", "Pictures", "Settings"]


def test_report_of_a_run_with_a_damaged_file(digits_runs: Callable[[str], Path], tmp_path: Path) -> None:
    run = shutil.copytree(digits_runs("msa"), tmp_path / "runs" / "msa", ignore=shutil.ignore_patterns("*.pt"))

    def damage(name: str, old: str, new: str) -> None:
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))

    damage("summary.json", '"energy_convention"', '"energy_of"')
    damage("summary.json", '"top5": ', '"top5": null, "top5_was": ')
    damage("metrics.csv", "train_loss", "loss")
    damage("metrics.csv", "0,", "zero,")
    damage("provenance.json", '"starts": [', '"starts": [1,')
    assert report.main([str(run)]) == 0 and {"top-5", "-"} <= set(Page(run / "report.html").cells)
    damage("summary.json", '"top1": ', '"top1": null, "top1_was": ')
    assert report.main([str(run.parent)]) == 0


def test_report_of_a_folder(digits_runs: Callable[[str], Path], tmp_path: Path) -> None:
    for kind in ("msa", "ecoformer"):
        (tmp_path / kind).mkdir()
        for name in ("summary.json", "config.yaml", "metrics.csv", "metrics.jsonl", "provenance.json"):
            shutil.copyfile(digits_runs(kind) / name, tmp_path / kind / name)
    assert report.main([str(tmp_path)]) == 0
    page = Page(tmp_path / "report.html")
    assert page.headings == ["Tables", "Pictures", "Training", "Runs"] and len(page.pictures) == 2
    assert {"msa", "ecoformer", "finished"} <= set(page.cells)
    assert {path.name for path in tmp_path.iterdir()} == {"msa", "ecoformer", "report.html"}

    # The tables and pictures that a study wrote go before any that would be made here.
    (tmp_path / "table.md").write_text("**A study**\n\n| row | top-1 % |\n|---|---:|\n| a <b> | 12.34 |\n\nA note.\n")
    shutil.copyfile(digits_runs("ecoformer") / "hash_fits.png", tmp_path / "vit_curves.png")
    assert report.main([str(tmp_path)]) == 0
    page = Page(tmp_path / "report.html")
    assert page.headings == ["Tables", "Pictures", "Runs"] and {"a <b>", "12.34"} <= set(page.cells)


@pytest.mark.parametrize("made", [False, True])
def test_no_run_and_no_study(tmp_path: Path, one_line: Callable[..., str], made: bool) -> None:
    folder = tmp_path / "nothing"
    if made:
        folder.mkdir()
    assert ("holds no run" if made else "is no folder") in one_line(report.main, folder)
    assert not (folder / "report.html").exists()


def test_a_table_of_markdown_is_the_same_table(tmp_path: Path) -> None:
    columns = [Column("name", "name", left=True), Column("x", "x", "{:.1f}")]
    table = Table(columns, [{"name": "a|b & <c>", "x": 1.25}, {"name": "", "x": None}])
    for spaced in (False, True):
        assert html.from_markdown(markdown(table, spaced)) == [html.table(table)]


def test_prose_of_a_markdown_file_becomes_headings_and_notes() -> None:
    text = "# A & b\n\n![picture](picture.png)\n\n- one\n  and more\n- `command`\n"
    assert html.from_markdown(text) == ["<h3>A &amp; b</h3>", html.note("one and more"), html.note("command")]
