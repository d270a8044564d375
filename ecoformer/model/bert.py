"""Hugging Face encoders: as a model of sequences (`Ids`), and read back after a conversion (`from_pretrained`).

Shapes: B samples, N tokens, D model channels, K classes.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, load_model
from torch import Tensor, nn

from ecoformer.errors import InputError, one_line
from ecoformer.model.convert import convert
from ecoformer.model.low_rank import ranks_in, take_ranks
from ecoformer.nn.bert import make_key_masks
from ecoformer.nn.heads import token_mean
from ecoformer.nn.specs import make_spec


class Ids(nn.Module):
    """A Hugging Face encoder called with ids alone, as fits, the ledger, token counts and the benchmark call a model.

    (B, N) ids, padded by `config.pad_token_id`, to logits (B, K) where the model has a head, else to the mean of the
    last hidden states of the real tokens, (B, D). Masks are those of `make_key_masks`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.vocab_size, self.padding = model, model.config.vocab_size, model.config.pad_token_id
        positions = next(module for name, module in model.named_modules() if name.endswith("position_embeddings"))
        after_padding = 0 if positions.padding_idx is None else positions.padding_idx + 1  # where RoBERTa's begin
        self.seq_len = positions.num_embeddings - after_padding
        make_key_masks(model.config)

    def forward(self, ids_BN: Tensor) -> Tensor:
        mask_BN = ids_BN != self.padding
        out = self.model(input_ids=ids_BN, attention_mask=mask_BN)
        return out.logits if "logits" in out else token_mean(out.last_hidden_state, mask_BN)[:, 0]


def from_pretrained(folder: str | Path) -> Any:
    """A converted or low-rank model of transformers as its `save_pretrained` wrote it, in evaluation mode.

    The class and the attention of every layer are those that config.json names, ranks those of the weights. The
    from_pretrained of transformers does not know such layers and refuses them, for the size of a weight.

    Raises InputError: no such folder or files, or weights that are not those of the model that config.json describes.
    """
    import transformers

    weights = Path(folder) / "model.safetensors"
    if not weights.is_file():
        raise InputError(f"{weights} does not exist: name the folder that save_pretrained wrote, in one shard")
    try:
        ranks = ranks_in(load_file(weights))
        config = transformers.AutoConfig.from_pretrained(folder)
        model = getattr(transformers, (config.architectures or ["none"])[0])(config)
        options = {index: dict(own) for index, own in getattr(config, "ecoformer", {}).items()}
        specs = {index: make_spec(own.pop("name"), own) for index, own in options.items()}
    except InputError:
        raise
    except Exception as error:  # transformers and safetensors have many, for a file of another kind and a damaged one
        raise InputError(f"{folder} holds no model that can be read: {one_line(error)}; save it again") from error
    for index, spec in specs.items():
        assert spec is not None, "stock layers are not written down"
        where = f".layer.{index}.attention"
        convert(model, spec, lambda module, name, where=where: where in f".{name}")  # type: ignore[misc]
    take_ranks(model, ranks)
    try:
        missing, unexpected = load_model(model, weights, strict=False)
        unexpected = [key for key in unexpected if not key.endswith("position_ids")]  # older versions saved them
        if missing or unexpected:
            raise RuntimeError(f"missing {sorted(missing)}, unexpected {unexpected}")
    except RuntimeError as error:
        raise InputError(f"{weights} does not fit its config.json: {one_line(error)}; save the model again") from error
    return model.to(config.dtype).eval() if config.dtype else model.eval()
