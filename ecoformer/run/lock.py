"""One owner of a folder of results: a file in it says which process writes there, while it does."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ecoformer.errors import InputError
from ecoformer.files import json_text, remove, writing

LOCK = "run.lock"


@dataclass(frozen=True)
class Owner:
    """A process: its host, its number there, and when it started, since numbers are used again."""

    host: str
    process: int
    started: str

    @classmethod
    def here(cls) -> Owner:
        return cls(socket.gethostname(), os.getpid(), started(os.getpid()))

    def is_gone(self) -> bool:
        """Whether this process of this host has ended."""
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # another user's
        now = started(self.process)
        return now != self.started or (not now and Path("/proc/self/stat").exists())  # a zombie has ended


def started(process: int) -> str:
    """Clock ticks since boot, which tell two processes of one number apart; "" for one that ended, or off Linux."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state == "Z" else fields[18]


def refuse_if_owned(folder: Path, *, same_launch: bool, lock: str = LOCK) -> str | None:
    """Raise InputError if another process owns the folder; a note if it did and is gone.

    Args:
        same_launch: this process is a later start of the launch that opened the folder, so an owner on another host
            was its own and has ended.
        lock: the file that says so: a study owns the folder of a run by another one than the run itself.
    """
    path = folder / lock
    try:
        owner = Owner(**json.loads(path.read_text()))
    except (FileNotFoundError, NotADirectoryError):  # the latter is said when the folder is made
        return None
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read: if no process is just starting there, remove it") from error
    if owner == Owner.here():
        return None
    if owner.host == socket.gethostname():
        if owner.is_gone():
            return f"took {folder} over from process {owner.process}, which ended without a word"
        raise InputError(f"{folder} is in use by process {owner.process}: wait for its end, or choose another folder")
    if same_launch:
        return f"took {folder} over from process {owner.process} on {owner.host}, an earlier start of this launch"
    raise InputError(
        f"{folder} is in use by process {owner.process} on host {owner.host}: wait for its end, choose another "
        f"folder, or, if that process is gone, remove {path}"
    )


@contextmanager
def owned(folder: Path, *, same_launch: bool, lock: str = LOCK) -> Iterator[str | None]:
    """Own the folder, which exists, while this lasts. Gives and raises what `refuse_if_owned` does."""
    path, own = folder / lock, Owner.here()
    with writing(path), alone(folder):
        note = refuse_if_owned(folder, same_launch=same_launch, lock=lock)
        remove(path)
        try:
            with open(path, "x") as file:  # another host may be as fast: one of the two fails here
                file.write(json_text(asdict(own)))
        except FileExistsError as error:
            raise InputError(f"{folder} was just taken by another process: choose another one") from error
    try:
        yield note
    finally:
        if own == Owner.here():  # not in a forked child
            with suppress(OSError):
                path.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process of this host at a time: for what two must not both read and then write."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
