"""What ends a run with a word instead of a traceback: the user's input is wrong, or the user asked it to stop."""

import errno
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from numbers import Integral
from typing import Any, TypeGuard

# Why a place of the user's cannot be used, and what helps.
NO_PLACE = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "permission denied: correct its permissions, or name another place"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "a file stands where a folder is to be: name another place"),
    errno.EROFS: "read-only file system: name another place",
    errno.ENAMETOOLONG: "name too long: shorten it",
}


class InputError(ValueError):
    """A value from the user that cannot be used.

    The message is one line that states the value, the limit and the remedy; line breaks of a value become spaces. The
    command lines print it and exit with code 2; every other exception is a defect of ours and keeps its traceback.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(line.strip() for line in message.splitlines()))


class Interrupted(BaseException):
    """The run was asked to stop and did. Not an Exception, so that no handler for failures swallows it.

    Attributes:
        signum: the signal; the command line exits with `exit_code` = 128 + signum (130 Ctrl-C, 138 SIGUSR1,
            143 SIGTERM).
    """

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum


@contextmanager
def handling(signals: Iterable[int], handler: Callable[[int, Any], None] | signal.Handlers) -> Iterator[None]:
    """While it lasts, `handler` gets these signals; only in the main thread, elsewhere Python sets no handlers."""
    with ExitStack() as handlers:
        if threading.current_thread() is threading.main_thread():
            for signum in signals:
                handlers.callback(signal.signal, signum, signal.signal(signum, handler))
        yield


def require(value: object, kind: Any, what: str, where: str = "") -> None:
    """Raise InputError, which says "WHERE VALUE is no WHAT", unless a value is an instance of `kind`."""
    if not isinstance(value, kind):
        raise InputError(f"{where}{repr(value)[:60]} is no {what}")


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value is a whole number, Python's or NumPy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def mistake(error: BaseException) -> str | None:
    """The one line about what the user can mend, a place that cannot be used too; None for other errors."""
    if isinstance(error, InputError):
        return str(error)
    if not isinstance(error, OSError) or error.errno not in NO_PLACE or not isinstance(error.filename, str):
        return None
    return f"{error.filename}: {NO_PLACE[error.errno]}"


def one_line(error: BaseException) -> str:
    """What an error of a library says, on one line; the name of its class where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of what an error of a library says; the name of its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def counted(number: int, noun: str) -> str:
    """ "1 epoch", "3 epochs", "2 classes"."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"
