"""A report as one HTML file: tables, pictures and texts in it, no script, nothing fetched, readable on a phone."""

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ecoformer.errors import InputError
from ecoformer.files.table import Column, Table

STYLE = """
body { margin: 0 auto; max-width: 70rem; padding: 1rem; font: 16px/1.45 system-ui, sans-serif; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #ccc; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th { border-bottom: 1px solid #888; } .left { text-align: left; } td.left { white-space: normal; min-width: 6rem; }
img { max-width: max(100%, 40rem); height: auto; } figure { margin: 1rem 0; overflow-x: auto; }
figcaption, .note { color: #666; font-size: .875rem; }
pre { overflow-x: auto; font-size: .75rem; background: #f6f6f6; padding: .5rem; } summary { cursor: pointer; }
"""


def page(title: str, sections: Iterable[tuple[str, Sequence[str]]]) -> str:
    """The whole file; a section is a heading and its parts as HTML, and is left out where it has none."""
    body = [f"<h2>{escape(heading)}</h2>\n" + "\n".join(parts) for heading, parts in sections if parts]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def table(content: Table) -> str:
    """A table, which scrolls sideways where the screen is too narrow."""

    def line(tag: str, cells: Sequence[str]) -> str:
        sides = (' class="left"' if column.left else "" for column in content.columns)
        written = (f"<{tag}{side}>{escape(cell)}</{tag}>" for side, cell in zip(sides, cells, strict=True))
        return f"<tr>{''.join(written)}</tr>"

    head, body = line("th", content.headings), "\n".join(line("td", cells) for cells in content.cells)
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and texts, a line each."""
    return table(Table((Column("", 0, left=True), Column("", 1, left=True)), rows))


def picture(path: Path, caption: str = "") -> str:
    """A PNG as a part of the file. Raises InputError if it cannot be read."""
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    caption = escape(caption or path.stem.replace("_", " "))
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def folded(title: str, part: str) -> str:
    """A part that is shown when its title is touched."""
    return f"<details><summary>{escape(title)}</summary>\n{part}\n</details>"


def from_markdown(text: str) -> list[str]:
    """The tables of a Markdown file that this package wrote, its headings, and the lines around them as notes.

    Its pictures are left out: a report shows those of a folder apart.
    """
    parts: list[str] = []
    block: list[str] = []
    for line in [*text.replace("\n  ", " ").splitlines(), ""]:  # an indented line goes on with the one before
        if line.startswith("|"):
            block.append(line)
            continue
        if block:
            parts.append(table(_parsed(block)))
            block = []
        if (said := line.strip(" *#`-")) and not line.startswith("!["):
            parts.append(f"<h3>{escape(said)}</h3>" if line.startswith("#") else note(said))
    return parts


def _parsed(lines: Sequence[str]) -> Table:
    headings, rule, *rows = (
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines
    )
    columns = [Column(heading, number, left=not rule[number].endswith(":")) for number, heading in enumerate(headings)]
    return Table(columns, rows)
