"""Where the files in a tar archive lie, so that each can be read alone; only headers and small files are touched.

tarfile of the standard library is slower at headers, which counts in shards of millions of files, and takes an archive
that lacks its end for a whole one.

Format: POSIX.1-2001 (ustar and pax), with GNU's long names and large sizes, uncompressed.
"""

import mmap
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 512
RECORDS = 20 * BLOCK, 2**20  # bytes of one by default, and at most
STEP = 2**20  # bytes behind the end that are looked at together
_REGULAR = (b"0", b"\0", b"7")
_ELSEWHERE = (b"1", b"2", b"S")  # hard and symbolic links, and GNU's sparse files: their bytes do not follow
_GNU_LONG_NAME, _PAX, _PAX_GLOBAL = b"L", b"x", b"g"


class DamagedTar(Exception):
    """The archive cannot be read to its end; the message says where it stops."""


@dataclass(frozen=True)
class TarFile:
    """A regular file: its name, and where its bytes lie in the archive."""

    name: str
    offset: int
    size: int


def tar_files(path: Path) -> Iterator[tuple[TarFile, memoryview]]:
    """The regular files of an archive in order, each with a view of its bytes that is valid until the next one.

    Raises DamagedTar: no tar archive, a compressed one, a header whose checksum is wrong, an end that is missing
    because the archive was cut short or not written, or what would be left out without a word: links, sparse files,
    what lies behind the end.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # to open a pipe would wait for its other end
        raise DamagedTar("it is no file")
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise DamagedTar("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
            yield from _walk(data, view)


def _walk(data: mmap.mmap, view: memoryview) -> Iterator[tuple[TarFile, memoryview]]:
    position, total = 0, len(data)
    long_name: str | None = None
    long_size: int | None = None
    while True:
        header = data[position : position + BLOCK]
        if len(header) < BLOCK:
            raise DamagedTar(f"it was cut short: tar's end mark is missing at byte {total}")
        if not header.strip(b"\0"):
            if any(data[at : at + STEP].strip(b"\0") for at in range(position, total, STEP)):
                raise DamagedTar(f"more lies behind its end at byte {position}: pack joined archives as one")
            if total - position > (most := _most_zeros(total)):  # a download, say, that was to be as long
                raise DamagedTar(
                    f"it ends with {total - position:,} zeros, tar with at most {most:,}: files are missing; get it "
                    "again, or pack it anew"
                )
            return
        size = _checked_size(header, position)
        kind, start = header[156:157], position + BLOCK
        if kind in _REGULAR and long_size is not None:
            size = long_size
        if start + size > total:
            raise DamagedTar(f"it was cut short in the file at byte {position}")
        position = start + -(-size // BLOCK) * BLOCK
        if kind == _GNU_LONG_NAME:
            long_name = _text(data[start : start + size])
        elif kind == _PAX:
            try:
                records = _pax_records(data[start : start + size])
                long_name = records.get("path", long_name)
                long_size = _count(records["size"]) if "size" in records else None
            except (ValueError, IndexError):
                raise DamagedTar(f"its extended header at byte {start - BLOCK} is damaged") from None
            if any(key.startswith("GNU.sparse.") for key in records):
                raise _elsewhere(records.get("GNU.sparse.name") or long_name or "next file")
        elif kind in _ELSEWHERE:
            raise _elsewhere(long_name or _name(header))
        elif kind != _PAX_GLOBAL:
            if kind in _REGULAR:
                part = view[start : start + size]
                yield TarFile(long_name or _name(header), start, size), part
                part.release()
            long_name = long_size = None


def _elsewhere(name: str) -> DamagedTar:
    remedy = "pack the file itself (tar --dereference --hard-dereference, without --sparse)"
    return DamagedTar(f"its {name} is a link or a sparse file: {remedy}")


def _most_zeros(total: int) -> int:
    """Two blocks mark the end, and the last record is filled: of 20 blocks, or of 2^n that divide all (tar -b 64)."""
    default, largest = RECORDS
    return max(default, min(total & -total, largest)) + BLOCK


def _checked_size(header: bytes, position: int) -> int:
    try:
        stated = int(header[148:156].strip(b" \0") or b"0", 8)
        if stated != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
            raise ValueError
        if header[124] & 0x80:  # GNU: a size of 8 GiB or more, in base 256
            return int.from_bytes(header[125:136], "big")
        return int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        if position == 0:
            compressed = header[:2] == b"\x1f\x8b" or header[:4] == b"\x28\xb5\x2f\xfd"
            raise DamagedTar("it is compressed: unpack it to a plain .tar" if compressed else "it is no tar") from None
        raise DamagedTar(f"its header at byte {position} is damaged") from None


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(raw: bytes) -> str:
    return os.fsdecode(raw.split(b"\0", 1)[0])


def _count(digits: str | bytes) -> int:
    if not digits.isdigit():
        raise ValueError
    return int(digits)


def _pax_records(raw: bytes) -> dict[str, str]:
    records = {}
    while raw.strip(b"\0"):
        length = _count(raw.split(b" ", 1)[0])
        key, _, value = raw[:length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        records[key.decode()] = os.fsdecode(value)
        raw = raw[length:]
    return records
