"""Hugging Face's BERT and its kin as sources of conversion. transformers is imported where a model of it came, only.

A layer of ours projects its output itself (some kinds fold what they learn into that projection), and BERT's projection
stands in BertSelfOutput beside dropout, residual and LayerNorm. The seam is therefore BertAttention, the pair of
BertSelfAttention and BertSelfOutput: queries, keys and values are read from the one, the projection from the other, and
the rest of BertSelfOutput stays as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.nn.base import ReplacementAttention
from ecoformer.nn.projections import Projections, StockCall, read_separate, refusal, register_reader
from ecoformer.nn.seats import Seat, softmax_of

# Classes of transformers.models with BertAttention's parts and BertAttention's forward.
KIN = ("BertAttention", "RobertaAttention", "XLMRobertaAttention", "CamembertAttention", "ElectraAttention")
KEY_MASKS = "ecoformer"  # the attention implementation whose masks are ours


def is_kin(module: nn.Module) -> bool:
    """Whether a module is BERT's attention, or that of its kin: it returns its output and attention weights or None."""
    return type(module).__name__ in KIN and type(module).__module__.startswith("transformers.")


def read_kin(model: nn.Module) -> None:
    """Teach the conversion those classes of BERT's kin that are in a model."""
    for cls in {type(module) for module in model.modules() if is_kin(module)}:
        register_reader(cls, StockCall(is_pair=True))(_read)


def _read(pair: Any, where: str) -> Projections:
    if pair.is_cross_attention:
        raise refusal(where, "cross attention, whose keys are those of another sequence,", "choose an encoder")
    attention, config = pair.self, pair.self.config
    if attention.is_decoder or attention.is_causal:
        raise refusal(where, "is_decoder=True (causal attention)", "load the model with is_decoder=False")
    positions = getattr(config, "position_embedding_type", None) or "absolute"
    if positions != "absolute":
        raise refusal(where, f"position_embedding_type={positions!r}", "choose a model with absolute positions")
    if attention.dropout.p > 0:
        remedy = "load the model with attention_probs_dropout_prob=0 (an argument of from_pretrained)"
        raise refusal(where, f"attention_probs_dropout_prob={attention.dropout.p}", remedy)
    # Without a dropout after the projection, for BertSelfOutput keeps its own.
    parts = {"query": "self.query", "key": "self.key", "value": "self.value", "proj": "output.dense"}
    source = read_separate(pair, where, attention.num_attention_heads, parts)
    return softmax_of(source, lambda attn: BertSeat(pair, attn))


class BertSeat(Seat):
    """In BertAttention's place: `attn`, a layer of ours, and BERT's own dropout, residual and LayerNorm after it.

    The model's config is told what stands in each of its layers, as `config.ecoformer`, and makes masks of keys.
    """

    attn: ReplacementAttention

    def __init__(self, pair: Any, attn: nn.Module) -> None:
        nn.Module.__init__(self)  # the config comes first, for it is told of every `attn`
        self.config, self.layer_idx, self.training = pair.self.config, pair.self.layer_idx, pair.training
        self.output = pair.output
        self.output.dense = ProjectedBefore(attn)
        self.attn = attn  # type: ignore[assignment]
        make_key_masks(self.config)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "attn":
            known = getattr(self.config, "ecoformer", {})
            self.config.ecoformer = {**known, str(self.layer_idx): {"name": value.spec.name, **asdict(value.spec)}}

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **unused: Any
    ) -> tuple[Tensor, None]:
        """BertAttention's: (B, N, D) to (B, N, D), and no attention weights. The mask is bool (B, 1, 1, N)."""
        return self.output(self.attn(hidden_states, attn_mask=attention_mask), hidden_states), None


class ProjectedBefore(nn.Module):
    """Where BertSelfOutput projected: it passes x on.

    Its weight is for loaders that know the stock layers alone: see `refused_elsewhere`.
    """

    weight: Tensor

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        device = next((parameter.device for parameter in attn.parameters()), None)
        self.register_buffer("weight", torch.zeros(1, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return x


def refused_elsewhere(layer: nn.Module) -> None:
    """Let the state dict of `layer` hold a weight that no stock layer takes; `layer` itself passes over it.

    A loader that knows the stock layers alone finds other names, draws new weights and merely warns. A weight under the
    old name, of another shape, makes it refuse.
    """
    layer.register_state_dict_post_hook(_add_weight)
    layer.register_load_state_dict_pre_hook(_drop_weight)


def _add_weight(layer: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    state[f"{prefix}weight"] = torch.zeros(1, device=next(layer.parameters()).device)


def _drop_weight(layer: nn.Module, state: dict[str, Tensor], prefix: str, *unused: Any) -> None:
    state.pop(f"{prefix}weight", None)


def of_transformers(module: nn.Module) -> bool:
    """Whether a module is a model of transformers, or a part of one that knows the model's config."""
    return type(getattr(module, "config", None)).__module__.startswith("transformers.")


def make_key_masks(config: Any) -> None:
    """Let a model of this config make masks that say which keys take part, bool (B, 1, 1, N), and nothing more.

    Stock layers go on with torch's fused attention. Hugging Face's own masks hold a row a query, (B, 1, N, N), and ask
    the values of a tensor whether there is padding at all.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register(KEY_MASKS, sdpa_attention_forward)
    AttentionMaskInterface.register(KEY_MASKS, _key_mask)
    config._attn_implementation = KEY_MASKS


@contextmanager
def with_key_masks(model: nn.Module) -> Iterator[None]:
    """While it lasts, layers of BERT's kin get the masks of `make_key_masks`: a pass on meta tensors needs them."""
    layers: list[Any] = [module for module in model.modules() if is_kin(module)]
    configs = [layer.self.config for layer in layers]
    own = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            make_key_masks(config)
        yield
    finally:
        for config, implementation in zip(configs, own, strict=True):
            config._attn_implementation = implementation


def _key_mask(*sizes: int, attention_mask: Tensor | None = None, **unused: Any) -> Tensor | None:
    return None if attention_mask is None else attention_mask[:, None, None, :].bool()


def unreadable(model: nn.Module) -> str:
    """Why a model of transformers has no attention that can be read: a clause of a message; "" for other models."""
    if not of_transformers(model):
        return ""
    config: Any = model.config
    names = [*vars(config), *(type(module).__name__.lower() for module in model.modules())]
    if any("rotary" in name for name in names) or getattr(config, "rope_parameters", None):
        return "rotary positions (RoPE) turn its queries and keys; "
    if any(key.startswith("relative_attention") for key in vars(config)):
        return "relative positions (relative_attention) are added inside it; "
    if any(getattr(module, "is_causal", False) for module in model.modules()):
        return "it is causal; "
    return f"only {', '.join(KIN)} are read; "
