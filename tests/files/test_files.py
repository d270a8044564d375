"""Every JSON that we write is valid JSON: what is no number is null."""

from __future__ import annotations

import json
import math
from pathlib import Path

from ecoformer.errors import counted
from ecoformer.files import json_text, read_json, write_json

FIGURES = {"loss": math.nan, "top1": 50.0, "rates": [math.inf, -math.inf, 1.0], "nested": {"best": math.nan}}
WRITTEN = {"loss": None, "top1": 50.0, "rates": [None, None, 1.0], "nested": {"best": None}}


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    assert json.loads(json_text(FIGURES)) == WRITTEN
    write_json(tmp_path / "figures.json", FIGURES)
    assert read_json(tmp_path / "figures.json") == WRITTEN


def test_one_is_no_plural() -> None:
    words = [counted(number, noun) for noun in ("epoch", "class") for number in (0, 1, 2)]
    assert words == ["0 epochs", "1 epoch", "2 epochs", "0 classes", "1 class", "2 classes"]
