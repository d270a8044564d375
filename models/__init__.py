"""The published rows as timm models: `import ecoformer.models`, then `timm.create_model("pvt_v2_b0_ecoformer")`."""

from ecoformer.models.converted import ARCHITECTURE
from ecoformer.models.encoder import LraEncoder
from ecoformer.models.registry import MODEL_NAMES

__all__ = ["ARCHITECTURE", "MODEL_NAMES", "LraEncoder"]
