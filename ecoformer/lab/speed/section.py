"""What the JSON rows of `scripts/benchmark.py` say, as the markdown between two markers of a document."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ecoformer.errors import InputError, counted
from ecoformer.files import read_json
from ecoformer.files.table import Column, Table, markdown

START, END = "<!-- speed: written by scripts/speed_section.py -->", "<!-- end of speed -->"
KEYS = ("model", "attention", "img_size", "batch_size", "mode", "threads", "precision", "images_per_second", "machine")
APART = ("loader", "loop", "resolution")  # how other files of the folder begin; their tables stand in docs/speed.md
Row = dict[str, Any]


def read_rows(path: Path, keys: Sequence[str] = KEYS) -> list[Row]:
    """The rows of one file, without what could not be measured.

    Raises InputError if they are not the benchmark's or lack one of `keys`.
    """
    hint = "rows of benchmark.py: give what --out wrote"
    rows = read_json(path, hint)
    if isinstance(rows, list):
        rows = [row for row in rows if not (isinstance(row, dict) and "error" in row)]
    if not (isinstance(rows, list) and all(isinstance(row, dict) and row.keys() >= set(keys) for row in rows)):
        raise InputError(f"{path} holds no {hint}")
    return rows


def section(folder: Path) -> str:
    """A table of all runs at one image size, and a line on the growth from growth*.json; APART is not read."""
    growth = [row for path in sorted(folder.glob("growth*.json")) for row in read_rows(path)]
    files = [path for path in sorted(folder.glob("*.json")) if not path.name.startswith(("growth", *APART))]
    rows = [row for path in files for row in read_rows(path)]
    if not rows:
        raise InputError(f"{folder} holds no results: run scripts/benchmark.py with --out {folder}/NAME.json")
    lines = [_header(rows), "", markdown(Table(COLUMNS, rows))]
    lines += ["", *_growth_lines(growth)] if growth else []
    return "\n".join(lines)


def replace_section(document: str, text: str) -> str:
    """The document with `text` between its markers. Raises InputError without exactly one pair of them."""
    before, start, rest = document.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end or START in rest or END in after:
        raise InputError(f"the document needs one line {START!r} and, below it, one {END!r}")
    return f"{before}{START}\n{text}\n{END}{after}"


def _header(rows: Sequence[Row]) -> str:
    settings = {
        f"{row['machine']}, {counted(row['threads'], 'thread')}, {row['precision']}, batch {row['batch_size']}, "
        f"{row['img_size']} px, torch {row.get('torch', '?')}"
        for row in rows
    }
    return f"Measured ({'; '.join(sorted(settings))}):"


def _allocator(row: Row) -> str:
    environment = row.get("environment", {})
    if environment.keys() == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}:
        return "keeps memory"
    return ", ".join(f"{key}={value}" for key, value in environment.items()) or "default"


COLUMNS = (
    Column("model", "model", left=True),
    Column("mode", "mode", left=True),
    Column("attention", "attention", left=True),
    Column("images/s", "images_per_second", "{:.1f}"),
    Column("to stock", lambda row: row.get("ratio_to_stock"), "{:.2f}", none=""),
    Column("peak MiB", lambda row: row.get("peak_mib"), "{:.0f}", none=""),
    Column("allocator", _allocator, left=True),
)


def _growth_lines(rows: Sequence[Row]) -> list[str]:
    lines = []
    for attention in dict.fromkeys(row["attention"] for row in rows):
        own = (row for row in rows if row["attention"] == attention)
        mine = sorted((row["img_size"], 1 / (row["images_per_second"] * row["img_size"] ** 2)) for row in own)
        (small, least), (large, most) = mine[0], mine[-1]
        highest = max(time for _, time in mine) / min(time for _, time in mine)
        lines.append(
            f"- {attention}: a token at {large} px takes {most / least:.2f} times its time at {small} px "
            f"(largest over smallest of {len(mine)} sizes: {highest:.2f})"
        )
    first = rows[0]
    return [f"Time per token of {first['model']}, {first['mode']}, batch {first['batch_size']}:", "", *lines]
