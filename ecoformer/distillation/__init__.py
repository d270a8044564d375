"""From a trained model to binary linear attention in seconds, with the controls that tell what it is worth."""

from ecoformer.distillation.controls import ControlSpec
from ecoformer.distillation.distill import BlockError, Distilled, block_errors, distill

__all__ = ["BlockError", "ControlSpec", "Distilled", "block_errors", "distill"]
