"""Ctrl-C and SIGTERM: the step in hand is finished, then the run stops and says how to go on."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(BaseException):
    """The run was asked to stop and did. Not an Exception, so that no handler for failures swallows it.

    Attributes:
        signum: the signal; the command line exits with `exit_code` = 128 + signum (130 Ctrl-C, 143 SIGTERM).
    """

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message or f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum


class StopSignals:
    """Context in which the first SIGINT or SIGTERM is only noted, and the second raises Interrupted at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._process = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.received = None
        # Python runs signal handlers in the main thread alone; elsewhere they cannot even be set.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked loader worker inherits this handler. The terminal sends Ctrl-C to it as well, but it must
            # live until the step is done; SIGTERM comes from its parent and ends it as usual.
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        if self.received is not None:
            raise Interrupted(signum)
        self.received = signum

    def check(self) -> None:
        """Raise Interrupted if a signal came in."""
        if self.received is not None:
            raise Interrupted(self.received)
