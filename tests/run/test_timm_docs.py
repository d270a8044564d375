"""docs/timm.md: every key that the tables name is one of the schema, and the example is a run."""

from __future__ import annotations

import re

import pytest
from app_helpers import ROOT, compose_config

from ecoformer.cli.main import COMMANDS
from ecoformer.config.loading import OPEN_KEYS, known_keys
from ecoformer.config.schema import SCHEMAS
from ecoformer.run.checks import check_config

TEXT = (ROOT / "docs" / "timm.md").read_text()
KEYS = {key for schema in SCHEMAS.values() for key in known_keys(schema)}
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith(("| timm |", "| ---"))
]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_the_tables_are_read() -> None:
    assert len(ROWS) > 80 and all(len(row) == 3 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_key_of_a_row_exists(row: list[str]) -> None:
    theirs, ours, why = row
    assert theirs
    for key in named(ours):
        if key.startswith("ecoformer "):
            assert key.split()[1] in COMMANDS
        else:
            assert key in KEYS
    for setting in named(why):
        key = setting.partition("=")[0]
        if re.fullmatch(r"\+?[a-z_]+(\.[a-z_]+)+", key) and " " not in key:
            key = key.lstrip("+")
            assert key in KEYS or key.startswith(tuple(f"{name}." for name in OPEN_KEYS)), key


def test_no_argument_is_listed_twice_in_a_section() -> None:
    for section in TEXT.split("\n## ")[1:]:
        listed = [name for line in section.splitlines() if line.startswith("| `") for name in named(line.split("|")[1])]
        assert len(listed) == len(set(listed))


def test_the_new_keys_of_training_are_in_the_tables() -> None:
    """What a run's groups of timm's kind have is in some row, or is this package's own."""
    own = {
        *("train.parallel", "train.max_steps", "train.freeze", "train.max_skipped_batches", "train.progress"),
        "augment.crop_padding",
    }
    in_rows = {key for row in ROWS for key in (*named(row[1]), *named(row[2]))}
    groups = ("optim.", "schedule.", "augment.", "train.")
    assert {key for key in KEYS if key.startswith(groups)} - in_rows <= own


def test_the_example_is_a_run() -> None:
    (line,) = (line for line in TEXT.splitlines() if line.startswith("ecoformer train "))
    config = compose_config(*line.removeprefix("ecoformer train ").split())
    assert check_config(config) == []
    assert (config.optim.name, config.augment.auto_augment, config.train.bce_loss) == ("lamb", "3a", True)
