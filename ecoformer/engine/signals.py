"""Ctrl-C, SIGTERM and SIGUSR1: the step in hand is finished and saved, then the run stops and says how to go on."""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack
from types import FrameType

import torch

from ecoformer.engine import distributed
from ecoformer.errors import Interrupted, handling

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME_REQUEST_S = 1.0


class StopSignals(ExitStack):
    """Context in which the signals in HANDLED are only noted, in `received`.

    A further Ctrl-C raises Interrupted at once, for a user who will not wait. Other repeats change nothing: a
    scheduler signals every process of a job, torchrun among them, which then signals the same processes again.
    For the same reason a Ctrl-C within SAME_REQUEST_S of the first signal counts as one with it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received: int | None = None
        self._received_at = 0.0
        self._process = os.getpid()

    def __enter__(self) -> StopSignals:
        self.received = None
        self.enter_context(handling(HANDLED, self._handle))
        return self

    def obey(self, device: torch.device) -> None:
        """End the run on all ranks if one of them got a signal; every rank must call it."""
        received = torch.tensor([self.received or 0], device=device)
        if signum := int(distributed.all_reduce_max(received)):
            raise Interrupted(signum)

    def obey_alone(self) -> None:
        """End the run of a lone process that got a signal; several cannot agree amid a batch or a fit."""
        if self.received is not None and distributed.world_size() == 1:
            raise Interrupted(self.received)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked loader worker inherits this handler. Terminals and schedulers signal it as well, but it must
            # live until the step is done; SIGTERM comes from its parent, too, and ends it as usual.
            if signum == signal.SIGTERM:
                os._exit(128 + signum)
            return
        if self.received is None:
            self.received, self._received_at = signum, time.monotonic()
        elif signum == signal.SIGINT and time.monotonic() - self._received_at > SAME_REQUEST_S:
            raise Interrupted(signum)
