"""For tests that add an attention kind: what knows kinds is afterwards as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import ecoformer.models
from ecoformer.kinds import BUILDERS, SPECS
from ecoformer.nn.projections import READERS


@contextmanager
def kinds_restored() -> Iterator[None]:
    registries = SPECS, BUILDERS, READERS
    before, names = [dict(registry) for registry in registries], list(ecoformer.models.MODEL_NAMES)
    try:
        yield
    finally:
        for registry, content in zip(registries, before, strict=True):
            registry.clear()
            registry.update(content)
        ecoformer.models.MODEL_NAMES[:] = names
