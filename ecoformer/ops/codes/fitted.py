"""What a fit changes, and how it is rebuilt from changed tensors.

Shapes: B batch, H heads, N tokens, C head channels.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Self

from torch import Tensor

POSITIVE = ("weight_HK", "floor_H", "bandwidth_H")  # stay above 0: a fit steps on their logarithms


class Fitted:
    """Base of frozen dataclasses of tensors, heads first.

    `fitted` names the fields that a fit changes, in a fixed order: tensors, and others of this base. Those that are
    None are passed over.
    """

    fitted: ClassVar[Any] = ()

    def _parts(self) -> list[tuple[str, Any]]:
        return [(name, part) for name in self.fitted if (part := getattr(self, name)) is not None]

    def tensors(self) -> Iterator[Tensor]:
        """Everything that a fit changes, in a fixed order; every tensor has the heads first."""
        for _, part in self._parts():
            yield from part.tensors() if isinstance(part, Fitted) else (part,)

    def positive(self) -> list[bool]:
        """Which of `tensors` must stay above 0."""
        found: list[bool] = []
        for name, part in self._parts():
            found += part.positive() if isinstance(part, Fitted) else [name in POSITIVE]
        return found

    def with_tensors(self, tensors: Iterator[Tensor]) -> Self:
        """The same with other tensors, in the order of `tensors`."""
        new: dict[str, Any] = {
            name: part.with_tensors(tensors) if isinstance(part, Fitted) else next(tensors)
            for name, part in self._parts()
        }
        return replace(self, **new)  # type: ignore[type-var]


class Attends(Fitted, ABC):
    """What can be fitted: tensors that turn per-sample inputs into an attention output."""

    @abstractmethod
    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        """The attention output (B, H, N, C) of a batch of samples, given as tensors.

        A fit that anneals passes `slope`, that of the soft codes to compute it with.
        """
