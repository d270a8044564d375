"""Which class is which output: certain mappings, refusals with the first difference."""

from __future__ import annotations

import pytest
import torch

from ecoformer.data.identity import KnownClasses, ReorderedOutputs, match_classes, require_classes
from ecoformer.errors import InputError


@pytest.mark.parametrize(
    ("known", "found", "order"),
    [
        (["ant", "bee"], ["ant", "bee"], [0, 1]),
        (["bee", "ant"], ["ant", "bee"], [1, 0]),
        ([str(n) for n in range(12)], sorted(str(n) for n in range(12)), [0, 1, 10, 11, *range(2, 10)]),
        (["0", "1", "2"], ["002", "000", "001"], [2, 0, 1]),
        (["fe\u0301vrier", "mai"], ["f\u00e9vrier", "mai"], [0, 1]),
        (["ant", "bee"], ["0", "1"], None),
        (["ant", "bee"], ["ant", "cat"], None),
        (["ant", "bee"], ["ant", "bee", "cat"], None),
        (["ant", "ant"], ["ant", "ant"], None),
    ],
)
def test_only_certain_mappings(known: list[str], found: list[str], order: list[int] | None) -> None:
    assert match_classes(known, found) == order


def test_a_refusal_names_the_first_difference_and_the_data_that_were_read() -> None:
    known = KnownClasses(["ant", "bee"], "checkpoint RUN/best.pt")
    with pytest.raises(InputError, match=r"class 1 was bee in training and is cat in data\.root=OTHER: set data\.root"):
        require_classes(known, ["ant", "cat"], "data.root=OTHER")
    with pytest.raises(InputError, match="knows 2 classes, the data have 3"):
        require_classes(known, ["ant", "bee", "cat"], "data.root=OTHER")
    with pytest.raises(InputError, match="by number alone"):
        require_classes(known, ["0", "1"], "data.root=OTHER")


def test_outputs_follow_the_data() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    assert ReorderedOutputs(torch.nn.Identity(), [2, 0, 1])(logits).tolist() == [[3.0, 1.0, 2.0]]
