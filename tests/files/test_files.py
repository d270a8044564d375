"""Every JSON that we write is valid JSON: what is no number is null."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from ecoformer.errors import InputError, counted
from ecoformer.files import (
    atomic_write,
    json_text,
    read_json,
    require_writable,
    user_path,
    write_json,
    write_text,
)

FIGURES = {"loss": math.nan, "top1": 50.0, "rates": [math.inf, -math.inf, 1.0], "nested": {"best": math.nan}}
WRITTEN = {"loss": None, "top1": 50.0, "rates": [None, None, 1.0], "nested": {"best": None}}


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    assert json.loads(json_text(FIGURES)) == WRITTEN
    write_json(tmp_path / "figures.json", FIGURES)
    assert read_json(tmp_path / "figures.json") == WRITTEN


def test_what_is_no_file_is_written_to_and_stays(tmp_path: Path) -> None:
    """As /dev/stdout and the pipe of >(jq .) are: a rename would put a file in their place."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "figures")
    assert os.read(reader, 100) == b"figures"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1


def test_names_that_are_no_utf8_are_written_as_they_are(tmp_path: Path) -> None:
    write_text(tmp_path / "predictions.csv", os.fsdecode(b"k\xe4se.png"))
    assert (tmp_path / "predictions.csv").read_bytes() == b"k\xe4se.png"


def test_of_two_writers_of_one_file_the_second_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    with atomic_write(path) as file:
        file.write(b"whole")
        with pytest.raises(InputError, match=r"figures\.json: it is being written already"):
            write_text(path, "other")
    assert path.read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "figures.json.tmp").write_text("what a killed process left, and longer")
    write_text(path, "new")
    assert path.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_one_is_no_plural() -> None:
    words = [counted(number, noun) for noun in ("epoch", "class") for number in (0, 1, 2)]
    assert words == ["0 epochs", "1 epoch", "2 epochs", "0 classes", "1 class", "2 classes"]


def test_home_is_read_and_nobodys_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x/~y") == tmp_path / "x" / "~y"
    with pytest.raises(InputError, match=r"^~nobody.of.this.name/x lies in nobody's home: write the path in full"):
        require_writable("~nobody.of.this.name/x", "--out")


@pytest.mark.parametrize("text", ["https://a.org/b.pt", "s3://bucket/run", "file:///tmp/x"])
def test_an_address_is_no_path(text: str) -> None:
    with pytest.raises(InputError, match=rf"^{text} is an address: give a path on this machine, and fetch first"):
        user_path(text)
