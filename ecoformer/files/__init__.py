"""Files that are either wholly there or not at all, whatever happens while they are written; JSON in and out."""

import fcntl
import functools
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ecoformer.errors import InputError
from ecoformer.files.run_names import RUN_FILES, TOP

log = logging.getLogger(__name__)
ATTEMPTS = 5  # to open a file that others rename


def user_path(text: Path | str) -> Path:
    """A path as a user writes it, ~ for a home. Raises InputError for an address and for a home of nobody's."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(text)):
        raise InputError(f"{text} is an address: give a path on this machine, and fetch first what lies elsewhere")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{text} lies in nobody's home: write the path in full") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What fails to be written while this lasts is an InputError, which says why `path` was not and what to do."""
    try:
        yield
    except OSError as error:
        remedy = "free space or choose another folder (output_dir, --out)"
        reason = f"cannot write {path}: {error.strerror or error}; {remedy}; nothing half-written was left"
        raise InputError(reason) from error


@contextmanager
def atomic_write(path: Path, previous: Path | None = None) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` only once it is complete and on disk.

    The temporary file lies in the same folder (a rename across file systems is not atomic) under a fixed name,
    so that what a killed process leaves behind is overwritten by the next write.

    Args:
        previous: the name, in the same folder, that the file at `path` goes on under; a kill between the two renames
            leaves it there and no `path`.

    Raises:
        InputError: the disk is full, the folder cannot be written, another process writes the same file, ...; the
            previous file is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        if _is_stream(path):
            with open(path, "ab") as file:  # a rename would put a file in its place
                yield file
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with _owned(temporary) as file:
            try:
                file.truncate()
                yield file
                file.flush()
                os.fsync(file.fileno())
                if previous is not None and path.exists():
                    os.replace(path, previous)
                os.replace(temporary, path)
            except BaseException:
                temporary.unlink()
                raise
        _sync_folder(path.parent)


@contextmanager
def _owned(temporary: Path) -> Iterator[BinaryIO]:
    """The file, opened to be written and locked meanwhile. Raises InputError where it is being written."""
    for attempt in reversed(range(ATTEMPTS)):
        with open(temporary, "wb", opener=lambda path, flags: os.open(path, flags & ~os.O_TRUNC, 0o666)) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                where = f"cannot write {temporary.with_suffix('')}"
                raise InputError(f"{where}: it is being written already: give each command its own file") from error
            except OSError:  # some network file systems have no locks
                attempt = 0
            if attempt == 0 or _lies_at(file, temporary):
                yield file
                return


def _lies_at(file: BinaryIO, path: Path) -> bool:
    """False where whoever held the file renamed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically; raises InputError like `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode(errors="surrogateescape"))  # file names may be no UTF-8


def write_json(path: Path, content: Any, indent: int = 2) -> None:
    """Write plain containers atomically as JSON; raises InputError like `atomic_write`."""
    write_text(path, json_text(content, indent) + "\n")


def json_text(content: Any, indent: int | None = None) -> str:
    """Plain containers as JSON; numbers that it does not have (NaN, infinity) become null."""
    return json.dumps(finite(content), indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """Plain containers with None for every number that is not finite, tuples as lists."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, what: str = "JSON") -> Any:
    """The content of a JSON file, None for NaN and infinity. Raises InputError: no such file, or "holds no WHAT"."""
    try:
        return json.loads(path.read_bytes(), parse_constant=lambda name: None)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} holds no {what}") from error


def read_text(path: Path) -> str:
    """The text of a file. Raises InputError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def read_lines(path: Path) -> list[str]:
    """The whole lines of a file that grew line by line; a last one that a kill cut short is left out, with one note.

    Raises InputError if the file cannot be read.
    """
    *lines, unfinished = read_text(path).split("\n")
    if unfinished:
        _note_cut(path)
    return lines


@functools.cache  # once a file, however often it is read
def _note_cut(path: Path) -> None:
    log.warning("%s: its last line was cut short and is left out", path)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines, none without a file. Raises InputError for a line that is no object."""
    records = []
    for number, line in enumerate(read_lines(path) if path.is_file() else [], start=1):
        try:
            record = json.loads(line, parse_constant=lambda name: None)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise InputError(f"{path} line {number} is not a metrics record: repair or remove the line")
        records.append(record)
    return records


def refuse_overwriting(sources: Iterable[Any], out: Path | str | None, named: str) -> None:
    """Raise InputError where writing `out`, unless None, would destroy one of `sources` or a file of a run."""
    out = user_path(out or "").resolve()
    if not out.is_file():
        return
    there = [each for each in sources if isinstance(each, str | Path) and os.path.exists(each)]
    read = any(os.path.samefile(each, out) for each in there)
    kept = out.parent.name == TOP and out.match("epoch-*.pt")
    run = out.parent.parent if kept else out.parent
    # A lone file of such a name is a run's where its folder is read, and stands for it.
    is_run = any(os.path.samefile(each, run) for each in there) or any(
        (run / name).exists() for name in RUN_FILES if run / name != out
    )
    if read or (is_run and (kept or out.name in RUN_FILES)):
        what = "which is read" if read else f"a file of the run in {run}"
        raise InputError(f"{named} would write over {out}, {what}: name another file")


def require_writable(out: Path | str | None, named: str, *, folder: bool = False) -> None:
    """Raise InputError where `out`, a file or a folder to be, could not be written when the work is done; None can."""
    if out is None:
        return
    path = user_path(out)
    with writing(path):
        if _is_stream(path):
            return
        if path.exists() and path.is_dir() != folder:
            raise InputError(f"{named} is a {'file: name a folder' if folder else 'folder: name a file'}")
        there = (each for each in ((path, *path.parents) if folder else path.parents) if each.exists())
        with tempfile.TemporaryFile(dir=next(there)):
            pass


def remove(path: Path) -> None:
    """Delete a file that may be gone already. Raises InputError if the folder cannot be written."""
    with writing(path):
        path.unlink(missing_ok=True)


def _is_stream(path: Path) -> bool:
    """/dev/stdout, a pipe."""
    return path.parent == Path("/dev") or (path.exists() and not path.is_file() and not path.is_dir())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)  # the rename itself must survive a power cut too
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
