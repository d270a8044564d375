"""The samples of a source as one tensor, in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from ecoformer.data.corrupt import CorruptImages
from ecoformer.data.decode import EvalTransform, decode_images
from ecoformer.data.sequences import SequenceSource, grey_ids
from ecoformer.data.splits import Source


@dataclass(frozen=True)
class Reader:
    """Reads uint8 images (B, C, S, S); with a `vocab_size` ids (B, N), N = `seq_len`, of images in grey N = S * S."""

    transform: EvalTransform
    corrupt: CorruptImages
    vocab_size: int | None = None
    seq_len: int | None = None

    def __call__(
        self,
        source: Source,
        indices: Sequence[int] | np.ndarray,
        *,
        training: bool = False,
        progress: str | None = None,
    ) -> tuple[torch.Tensor, np.ndarray]:
        """The chosen samples, and which of `indices` they are: broken images are counted and left out."""
        if isinstance(source, SequenceSource):
            assert self.seq_len is not None and self.vocab_size is not None, "sequences have both"
            return source.ids(indices, self.seq_len, self.vocab_size), np.asarray(indices)
        # Training keeps the whole of the shorter side; crop_pct is an evaluation setting.
        transform = replace(self.transform, crop_pct=1.0) if training else self.transform
        read = decode_images if self.vocab_size is None else grey_ids
        return read(
            source, indices, transform, threads=torch.get_num_threads(), progress=progress, corrupt=self.corrupt
        )
