"""docs/field.md names a test for every row, and each of them exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_every_row_names_a_test_that_exists() -> None:
    rows = [line for line in (ROOT / "docs" / "field.md").read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| tried", "| ---"))]
    assert len(rows) >= 45
    for row in rows:
        found = re.search(r"`([\w/]+\.py)::(test_\w+)` \|$", row)
        assert found, row
        file = ROOT / "tests" / found[1]
        assert file.is_file() and re.search(rf"def {found[2]}\(", file.read_text()), f"{found[0]} does not exist"
