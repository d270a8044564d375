"""What every attention that replaces a stock one has in common, and how a kind becomes known.

Shapes: B batch, H heads, N tokens, C head channels, D model channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, fx, nn

from ecoformer.errors import InputError
from ecoformer.nn.heads import as_attn_mask, join_heads, split_heads
from ecoformer.nn.power_linear import without_powers
from ecoformer.nn.projections import FUSED_QKV, READERS, ROLES, Projections, linear_from, linear_rows, too_little
from ecoformer.nn.specs import SPECS, AttentionSpec, announce
from ecoformer.ops.precision import as_linears_take

BUILDERS: dict[type[AttentionSpec], type[ReplacementAttention]] = {}
KindT = TypeVar("KindT", bound="type[ReplacementAttention]")


def attention_kind(spec: type[AttentionSpec]) -> Callable[[KindT], KindT]:
    """Make a module class the one that `spec` asks for, known as `attention=NAME` if the spec has a name.

    Raises InputError for a name that another kind has.
    """

    def decorate(cls: KindT) -> KindT:
        known = SPECS.get(spec.name, spec)
        if (known.__module__, known.__qualname__) != (spec.__module__, spec.__qualname__) or spec.name == "stock":
            raise InputError(
                f"attention={spec.name} exists already: give {spec.__module__}.{spec.__name__} another name"
            )
        BUILDERS[spec] = cls
        READERS[cls] = cls.projections
        if spec.name:
            announce(spec)
        return cls

    return decorate


def one_node(forward: Callable[..., Any]) -> Any:
    """A forward that is one node of a graph of torch.fx, as those of torch's own layers are.

    What runs depends on precision, mode and weights, so it has no graph of its own. The feature extractors of timm and
    torchvision trace.
    """

    @wraps(forward)
    def forward_or_node(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], fx.Proxy):
            tracer: Any = args[0].tracer
            return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        return forward(self, *args, **kwargs)

    return forward_or_node


class ReplacementAttention(nn.Module):
    """Base of the attention kinds: (B, N, D) to (B, N, D), called by timm's PVTv2, Twins and ViT blocks alike.

    It projects, splits the heads and projects back; a kind says in `attend` how heads attend. Some say more: what else
    they are made of in `add_parts`, or whole steps of their own in `attention_output` or `projected_output`.

    Attributes:
        parts: the Linear behind each of query, key, value and proj; one that stands behind several has their rows one
            after the other. What is not named is not taken over from the layer that is replaced.
        also_carried: other submodules that are taken over, by name.
        new_parts: what the kind adds without trained weights.
            All of them are of the class, or of a layer where its source or its spec decides.
        takes_mask: whether the steps that a kind has of its own take `mask_BN`, (B, N), True where a token takes part;
            a mask is refused otherwise. It is passed to them, by name, only where there is one.
        shows_weights: whether the output is a weighted sum of the tokens' values, so that there are weights to show.
        needs_keys: what the kind needs keys for, in the message to a source without them.

    Args:
        dim: model channels D; divisible by num_heads.
        num_heads: heads H.
        spec: settings of the kind.
        qkv_bias, proj_bias: whether the projections before and after have one.
        proj_drop: dropout after the output projection.
    """

    parts: Mapping[str, str] = FUSED_QKV
    also_carried: tuple[str, ...] = ()
    new_parts: tuple[str, ...] = ()
    takes_mask: ClassVar[bool] = False
    shows_weights: ClassVar[bool] = True
    needs_keys: ClassVar[str] = "to build {} attention from"
    spec: AttentionSpec
    proj: nn.Linear

    def __init__(
        self,
        dim: int,
        num_heads: int,
        spec: Any,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        **factory: Any,
    ) -> None:
        linears = {
            part: nn.Linear(dim, len(roles) * dim, bias=proj_bias if part == "proj" else qkv_bias, **factory)
            for part, roles in self._roles_of_parts().items()
        }
        self._build(dim, num_heads, spec, linears, proj_drop, None)

    @classmethod
    def from_projections(cls, source: Projections, spec: Any) -> Self:
        """A layer of this kind with the weights of `source`, on its device and in its dtype.

        Raises InputError if the source lacks what the kind needs.
        """

        def of(role: str) -> nn.Linear:
            return source.own_keys(cls.needs_keys.format(spec.name)) if role == "key" else getattr(source, role)

        linears = {part: linear_from(*map(of, roles)) for part, roles in cls._roles_of_parts().items()}
        module = cls.__new__(cls)  # a subclass may construct with other arguments
        ReplacementAttention._build(module, source.dim, source.num_heads, spec, linears, source.proj_drop, source)
        return module

    @classmethod
    def _roles_of_parts(cls) -> dict[str, list[str]]:
        names = dict.fromkeys(cls.parts.values())
        return {name: [role for role in ROLES if cls.parts.get(role) == name] for name in names}

    def _build(
        self,
        dim: int,
        num_heads: int,
        spec: AttentionSpec,
        linears: Mapping[str, nn.Linear],
        proj_drop: float,
        source: Projections | None,
    ) -> None:
        super().__init__()
        assert dim % num_heads == 0, f"{dim} channels do not divide into {num_heads} heads"
        self.dim, self.num_heads, self.head_dim, self.spec = dim, num_heads, dim // num_heads, spec
        for part, linear in linears.items():
            self.add_module(part, linear)
        self.proj_drop = nn.Dropout(proj_drop)
        self.add_parts(source)

    def add_parts(self, source: Projections | None) -> None:
        """What the kind is made of beside its projections; `source` is what it is built from, None if it is new."""

    @property
    def carries(self) -> tuple[str, ...]:
        """What is taken over from the layer that is replaced: projections, then other submodules, by name."""
        return *(role for role in ROLES if role in self.parts), *self.also_carried

    @one_node
    def forward(
        self, x_BND: Tensor, feat_size: Any = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, D) to (B, N, D).

        Args:
            feat_size: the map's (height, width), which timm's hierarchical blocks pass.
            attn_mask: which keys take part, bool (B, 1, 1, N), as torch's and timm's attention take it; at least one
                a sample. What tokens that take no part get is finite and means nothing.
        Raises:
            InputError: any other mask, or one at all where the kind takes none.
        """
        if is_causal:
            raise InputError(f"{type(self).__name__} takes no is_causal=True: keep the stock attention for such layers")
        if attn_mask is None:
            return self.proj_drop(self.projected_output(x_BND, feat_size))
        if not self.takes_mask:
            raise InputError(
                f"{type(self).__name__} takes no attn_mask: its tokens cannot be left out; pass none, or keep the "
                "stock attention"
            )
        if attn_mask.dtype != torch.bool or attn_mask.shape != (x_BND.shape[0], 1, 1, x_BND.shape[1]):
            raise InputError(
                f"attn_mask is {str(attn_mask.dtype).removeprefix('torch.')} {tuple(attn_mask.shape)}: "
                f"{type(self).__name__} takes which keys take part alone, bool "
                f"{(x_BND.shape[0], 1, 1, x_BND.shape[1])}; keep the stock attention for other masks"
            )
        return self.proj_drop(self.projected_output(x_BND, feat_size, mask_BN=attn_mask[:, 0, 0]))

    def projected_output(self, x_BND: Tensor, feat_size: Any = None, mask_BN: Tensor | None = None) -> Tensor:
        """The attention output after the output projection, (B, N, D)."""
        return self.proj(self.attention_output(x_BND, feat_size, **given(mask_BN=mask_BN)))

    def attention_output(self, x_BND: Tensor, feat_size: Any = None, mask_BN: Tensor | None = None) -> Tensor:
        """The attention output before the output projection: (B, N, D), heads joined.

        Raises InputError where `attend` returns another shape: some would be spread over the tokens without a word.
        """
        out_BHNC = self.attend(*self.heads(x_BND), **given(mask_BN=mask_BN))
        if not torch.jit.is_tracing():  # where sizes are tensors
            wanted = (x_BND.shape[0], self.num_heads, x_BND.shape[1], self.head_dim)
            found = tuple(getattr(out_BHNC, "shape", ()))
            if found != wanted:
                raise InputError(
                    f"{type(self).__name__}.attend returns {found or type(out_BHNC)}, not {wanted}, (B, H, N, C)"
                )
        return join_heads(out_BHNC)

    def heads(self, x_BND: Tensor) -> list[Tensor]:
        """Queries, keys and values of x, as far as the kind has them, each (B, H, N, C)."""
        x_BND = as_linears_take(x_BND)
        found: dict[str, Tensor] = {}
        for part, roles in self._roles_of_parts().items():
            if part != "proj":
                rows = self.get_submodule(part)(x_BND).chunk(len(roles), dim=-1)
                found |= {role: split_heads(row, self.num_heads) for role, row in zip(roles, rows, strict=True)}
        return [found[role] for role in ROLES if role in found]

    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        """The attention output (B, H, N, C) of what `heads` returns."""
        raise TypeError(f"{type(self).__name__} does not say how it attends")

    def attention_weights(self, x_BND: Tensor) -> Tensor:
        """The weights (B, H, N, N) with which a token sums the values: for pictures and tests, never for `forward`."""
        raise TypeError(f"{type(self).__name__} has no attention weights to show")

    def paper_core_ops(self, num_tokens: int) -> tuple[int, ...]:
        """(multiplications, additions) of one image's attention core in the paper's accounting; shifts third, if any.

        The core is what lies between the projections; the Linears are counted by the ledger like any other.
        """
        raise TypeError(f"{type(self).__name__} has no accounting in the paper's convention")

    def projections(self, where: str) -> Projections:
        """What the layer leaves behind when it is replaced itself. Raises InputError if it keeps no queries."""
        if "query" not in self.parts:
            raise too_little(self, where)
        linears: dict[str, Any] = {"key": None}
        for part, roles in self._roles_of_parts().items():
            linear = without_powers(getattr(self, part, None))
            for number, role in enumerate(roles):
                start = number * self.dim
                linears[role] = linear if len(roles) == 1 else linear_rows(linear, start, start + self.dim)
        return Projections(
            where=where,
            dim=self.dim,
            num_heads=self.num_heads,
            proj_drop=self.proj_drop.p,
            parts={role: self.parts[role] for role in ROLES if role in self.parts},
            dropped=(*self.also_carried, *self.new_parts),
            **linears,
        )

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, {self.spec}"


def given(**others: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in others.items() if value is not None}


def called_with(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """What timm's blocks call an attention layer with, ours or theirs: its tokens, and of `feat_size` and `mask_BN`
    those that they pass."""
    x_BND, *sizes = args
    mask = kwargs.get("attn_mask")
    of_keys = mask[:, 0, 0] if mask is not None and mask.dim() == 4 else None  # the layer refuses any other
    return x_BND, given(feat_size=sizes[0] if sizes else None, mask_BN=of_keys)


def before_projection(layer: nn.Module, x_BND: Tensor, feat_size: Any = None, mask_BN: Tensor | None = None) -> Tensor:
    """What a layer, ours or timm's, hands to its output projection `proj`: (B, N, D)."""
    caught: list[Tensor] = []
    with layer.get_submodule("proj").register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0])):
        layer(x_BND, *given(size=feat_size).values(), **given(attn_mask=as_attn_mask(mask_BN)))
    assert len(caught) == 1, "an attention layer projects its output once"
    return caught[0]
