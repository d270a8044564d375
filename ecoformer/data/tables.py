"""Files that hold sequences: tables with a line or row a sample, plain or compressed."""

import bz2
import csv
import gzip
import logging
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from ecoformer.errors import InputError

log = logging.getLogger(__name__)
SPLITS = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}  # names they go under
COMPRESSED: dict[str, Callable[..., IO[str]]] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
TABLES = tuple(f"{kind}{ending}" for kind in (".tsv", ".csv") for ending in ("", *COMPRESSED))
LONGEST_FIELD = 2**31 - 1


def split_files(root: Path, *patterns: str) -> dict[str, Path]:
    """The file or folder of each split that is there; a pattern is a name with {} for that of the split.

    Of several the first is taken, with a warning.
    """
    found = {}
    for split, names in SPLITS.items():
        paths = (root / pattern.format(name) for name in names for pattern in patterns)
        if there := [path for path in paths if path.exists()]:
            found[split], *others = there
            if others:
                log.warning("%s is read, and not %s", found[split], ", ".join(path.name for path in others))
    return found


def lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its line, fields) of each row; a .tsv is split at every tab, a .csv has quotes.

    Bytes that are no UTF-8 come through as surrogates: "surrogateescape" makes them bytes again. Raises InputError for
    what cannot be read.
    """
    opener: Callable[..., IO[str]] = COMPRESSED.get(path.suffix, open)
    try:
        quoted = ".csv" in path.suffixes
        newline = "" if quoted else "\n"  # a text of a .tsv may hold a carriage return
        with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline=newline) as file:
            if quoted:
                csv.field_size_limit(LONGEST_FIELD)
                reader = csv.reader(file, strict=True)
                yield from ((reader.line_num, row) for row in reader)
            else:
                yield from ((number, line.rstrip("\r\n").split("\t")) for number, line in enumerate(file, start=1))
    except (OSError, EOFError, lzma.LZMAError, zlib.error, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): give a whole table, .tsv or .csv") from error


def rows(path: Path, columns: Sequence[str], settings: Sequence[str] = ()) -> Iterator[tuple[int, list[str]]]:
    """(number of its line, the fields of `columns`) of each row of a table whose first line names its columns.

    Args:
        settings: the keys that name these columns, for a message.
    Raises:
        InputError: an empty file, a column that is not there, a row with more or fewer fields.
    """
    found = lines(path)
    _, header = next(found, (0, []))
    if not header:
        raise InputError(f"{path} is empty: give a table whose first line names its columns")
    for column, setting in zip(columns, settings or [""] * len(columns), strict=True):
        if column not in header:
            remedy = f"set {setting}" if setting else "name it in the first line"
            raise InputError(f"{path} has no column {column!r} (there: {', '.join(header)[:200]}): {remedy}")
    places = [header.index(column) for column in columns]
    empty = True
    for line, row in found:
        if len(row) != len(header):
            raise InputError(
                f"{path} line {line} has {len(row)} fields, the first line names {len(header)}: correct it"
            )
        empty = False
        yield line, [row[place] for place in places]
    if empty:
        raise InputError(f"{path} has no rows below its first line: give a table of samples")
