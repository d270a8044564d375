"""README.md and the notebook run as printed, and what the pages link to is there."""

from __future__ import annotations

import json
import pkgutil
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from ecoformer.energy import load_profile

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "results").rglob("*.md"),
]


def cells(kind: str) -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_links_lead_somewhere() -> None:
    texts = [(page, page.read_text()) for page in PAGES]
    texts += [(NOTEBOOK, "".join(cell["source"])) for cell in cells("markdown")]
    links = [(page, link) for page, text in texts for link in re.findall(r"\]\((?![a-z]+:)([^)\s#]+)", text)]
    made = {ROOT / "docs" / "reference" / "commands.md"}  # docs/site_hooks.py writes it into the site
    assert len(links) > 200
    missing = [
        f"{page.relative_to(ROOT)}: {link}"
        for page, link in links
        if not (page.parent / link).exists() and (page.parent / link).resolve() not in made
    ]
    assert not missing


def test_the_site_has_every_page_and_knows_every_name() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if len(re.findall(rf": {re.escape(page)}$", nav, re.MULTILINE)) != 1] == []
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    names = re.findall(r"^::: (\S+)$", reference, flags=re.MULTILINE)
    assert len(names) > 50
    for name in names:
        assert pkgutil.resolve_name(name).__doc__, name


def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    names = {
        "images": torch.randn(2, 3, 128, 128),
        "my_module": nn.Linear(8, 4),
        "my_other_module": nn.Linear(8, 2),
        "example_input": torch.zeros(1, 8),
        "my_profile": load_profile("45nm_fp32"),
    }
    for block in blocks:
        exec(compile(block.replace("pretrained=True", "pretrained=False"), "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "stages.0.blocks.0.attn" in printed and "J before" in printed
    assert len(blocks) == 2


def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    code = "\n\n".join("".join(cell["source"]) for cell in cells("code"))
    for whole, few in (("STEPS = 900", "STEPS = 2"), ("FIT_STEPS = 300", "FIT_STEPS = 2")):
        assert whole in code
        code = code.replace(whole, few)
    threads = torch.get_num_threads()
    try:
        exec(compile(code, NOTEBOOK.name, "exec"), {"__name__": "notebook"})
    finally:
        torch.set_num_threads(threads)
        plt.close("all")
    printed = capsys.readouterr().out
    assert "2.49" in printed and "9.25" in printed  # PVTv2-B0 at 224 px, counted
    kept = "".join("".join(output.get("text", [])) for cell in cells("code") for output in cell["outputs"])
    assert "top-1" in kept and not re.search(r"/(home|root|tmp|usr|work)\b", kept)
