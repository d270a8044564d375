"""Images that cannot be decoded: each is reported once by name, and more than a limit of them end the run."""

import logging
import threading

from ecoformer.errors import InputError

log = logging.getLogger(__name__)


class CorruptImage(InputError):
    """One image cannot be decoded; `name` is its path, `reason` what the decoder says."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot be decoded ({reason}): repair or remove the file")
        self.name = name
        self.reason = reason


class CorruptImages:
    """The broken images that this process has met, over all its loaders and epochs.

    Args:
        limit: of different images (data.max_corrupt); 0: the first one ends the run.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.names: set[str] = set()
        self._lock = threading.Lock()

    def add(self, name: str, message: str) -> None:
        """Count and log an image that was not met before. Raises InputError above the limit."""
        with self._lock:
            if name in self.names:
                return
            self.names.add(name)
            count = len(self.names)
        if count > self.limit:
            excess = f"; {count} such images are more than data.max_corrupt={self.limit}" if self.limit else ""
            raise InputError(f"{message}{excess}")
        log.warning("%s; skipped, %d of at most data.max_corrupt=%d", message, count, self.limit)
