"""What a file is that somebody gave for weights: read from its first bytes, so that a message can say it."""

import re
import zipfile
from pathlib import Path

TAR_MAGIC_AT = 257


def is_torch_zip(path: Path) -> bool:
    """Whether the file is a zip archive as torch.save writes it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("data.pkl") for name in archive.namelist())


def is_safetensors(path: Path) -> bool:
    """Whether the file begins with a safetensors header, whatever its name is."""
    with open(path, "rb") as file:
        size, first = int.from_bytes(file.read(8), "little"), file.read(1)
    return first == b"{" and 0 < size < path.stat().st_size


def other_than_weights(path: Path) -> str | None:
    """What a file is that holds no weights, and what to do about it: "is an empty file: use another copy".

    None for what may be weights: torch's two formats, safetensors, and .npz.
    """
    if path.is_dir():
        return "is a folder: give a file of weights in it"
    with open(path, "rb") as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if not head:
        return "is an empty file: use another copy"
    if text.startswith(b"version https://git-lfs"):
        return "is a git-LFS pointer, not the file that it stands for: run git lfs pull, or download the file itself"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not the file that it links to: download the file itself"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")) or head[TAR_MAGIC_AT : TAR_MAGIC_AT + 5] == b"ustar":
        return "is a packed archive: unpack it and give a file of weights in it"
    if zipfile.is_zipfile(path) and not is_torch_zip(path) and path.suffix != ".npz":
        return "is a zip archive of other files: unpack it and give a file of weights in it"
    if not is_safetensors(path) and re.fullmatch(rb"[\t\n\r\x20-\x7e]+", head):
        return "is a text file: give a file of weights"
    return None


def refused_class(error: Exception) -> str:
    """The class that a pickle asked for and torch refused, as torch's error names it; "" if it does not."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found[1] if found else ""
