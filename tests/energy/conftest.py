"""What the energy tests share: the ledgers of published models, which take a second each."""

import functools

import pytest

from ecoformer.lab.energy.cases import Case

_count = functools.cache(Case.count)


@pytest.fixture(autouse=True)
def _counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that another test of this session counted is not counted again."""
    monkeypatch.setattr(Case, "count", lambda case, convention, strict=False: _count(case, convention, strict))
