"""A model: its attention layers, converting them, creating it, its checkpoints, low-rank weights."""

import ecoformer.kinds  # noqa: F401  registers every kind, its module and its reader
