"""count(): any model, unknown operations refused by name, nothing left behind in the model."""

import pytest
import timm
import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ecoformer.energy import UncountedOperationError, count, summarize
from ecoformer.errors import InputError
from ecoformer.lab.energy.cases import Case

OTHERS = [
    "resnet50",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "efficientnet_b0",
    "mobilenetv3_large_100",
]


@pytest.fixture(scope="module", autouse=True)
def _operation() -> None:
    """An operation that no rule knows, with a meta kernel so that counting can go on."""

    @torch.library.custom_op("ledgertest::fold", mutates_args=())
    def fold(x: Tensor) -> Tensor:
        return x.sin() * 2

    fold.register_fake(torch.empty_like)


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.odd = Odd()

    def forward(self, x: Tensor) -> Tensor:
        return self.odd(self.linear(x))


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.ledgertest.fold(x)


@pytest.mark.parametrize("convention", ["paper", "audited"])
def test_unknown_operation_is_refused_or_listed(convention: str) -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(UncountedOperationError, match=r"ledgertest\.fold\.default in module 'odd'.*strict=False"):
        count(Unknown(), x, convention=convention)
    ledger = count(Unknown(), x, convention=convention, strict=False)
    assert ledger.uncounted == ["ledgertest.fold.default"]
    assert ledger.muls == 2 * 3 * 4


def test_torchs_own_unknown_operation_is_refused() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft2(x).abs()

    with pytest.raises(UncountedOperationError, match=r"aten\._fft_r2c"):
        count(Spectrum(), 8)


@pytest.mark.parametrize("name", OTHERS)
def test_models_outside_our_families(name: str) -> None:
    """Nothing uncounted, and the products agree with torch's counter wherever it sees them.

    Its view is the explicit attention: on meta tensors fused attention reaches it as two products.
    """
    model = Case(name).build()
    ledger = count(model, 224)
    assert ledger.uncounted == []
    with torch.no_grad(), FlopCounterMode(display=False) as witness:
        model(torch.zeros(1, 3, 224, 224, device="meta"))
    batch_norms = sum(n for op, n in ((e.op, e.counts["fma"]) for e in ledger.entries) if "batch_norm" in op)
    assert 2 * (ledger.counts["fma"] - batch_norms) == witness.get_total_flops()


@pytest.mark.parametrize("name", ["pvt_v2_b0", "resnet18"])
def test_fvcore_agrees_where_it_sees_the_operation(name: str) -> None:
    """fvcore misses fused attention, and says so; everything else that multiplies it counts as we do."""
    model = timm.create_model(name).eval()
    analysis = FlopCountAnalysis(model, torch.zeros(1, 3, 64, 64)).unsupported_ops_warnings(False)
    theirs = analysis.by_operator()
    ours = count(model, 64).by_op()
    fused = ours["aten.scaled_dot_product_attention.default"].counts["fma"] if name.startswith("pvt") else 0
    assert fused > 0 or name == "resnet18"
    convolutions = ours["aten.convolution.default"].counts["fma"]
    matrices = sum(
        ours[op].counts["fma"] for op in ("aten.addmm.default", "aten.mm.default", "aten.bmm.default") if op in ours
    )
    assert theirs["conv"] == convolutions
    assert theirs["linear"] + theirs["matmul"] == matrices
    assert fused + convolutions + matrices == sum(
        part.counts["fma"] for op, part in ours.items() if "batch_norm" not in op
    )


def test_meta_and_real_device_agree() -> None:
    model = timm.create_model("resnet18")
    assert count(model, 64).counts == count(model, 64, device="cpu").counts


def test_model_is_untouched() -> None:
    model = timm.create_model("resnet18").train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: (x, x.clone()) for name, x in model.state_dict(keep_vars=True).items()}
    for device in ("meta", "cpu"):
        count(model, 64, device=device)
    with pytest.raises(InputError):
        count(model, (5, 64, 64))
    assert [module.training for module in model.modules()] == modes
    for name, x in model.state_dict(keep_vars=True).items():
        assert x is before[name][0]
        assert torch.equal(x, before[name][1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_large_images_need_no_memory() -> None:
    """MSA on PVTv2-B5 at 1024 px has 65536 x 65536 scores in each of three first blocks: 17 GB a map."""
    assert summarize(Case("pvt_v2_b5", "msa", 1024).build(), 1024)["muls"] > 10**12


class Caching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cache: Tensor | None = None
        self.register_buffer("table", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.cache = self.table = x * 2
            self.extra = nn.Identity()
        return x + self.cache


def test_what_a_forward_caches_is_forgotten() -> None:
    model = Caching()
    assert count(model, torch.zeros(3)).counts["mul"] == 3
    assert model.cache is None and model.table is None and not list(model.children())
    assert torch.equal(model(torch.ones(3)), torch.full((3,), 3.0))


def test_compiled_parts_are_counted_and_scripted_ones_refused() -> None:
    linear = nn.Linear(3, 4)
    compiled = nn.Sequential(torch.compile(linear))
    assert count(compiled, torch.zeros(2, 3)).counts == count(linear, torch.zeros(2, 3)).counts
    with pytest.raises(InputError, match="holds TorchScript"):
        count(nn.Sequential(torch.jit.trace(linear, torch.zeros(2, 3))), torch.zeros(2, 3))


class ResidualAttentionBlock(nn.Module):
    """Called attention, but its attention is a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x + self.attention(x, x, x, need_weights=False)[0])


def test_attention_only_leaves_the_rest_of_a_block_out() -> None:
    ledger = count(ResidualAttentionBlock(), torch.zeros(1, 5, 8))
    assert {entry.attention for entry in ledger.entries} == {"", "attention"}
    assert ledger.attention().by_op()["aten.scaled_dot_product_attention.default"].counts["fma"] == 2 * 25 * 8
    assert "aten.gelu.default" not in ledger.attention(projections=True).by_op()


def test_precision_scales_bytes_only() -> None:
    model = Case("pvt_v2_b0").build()
    full, half = (count(model, 64, dtype=dtype) for dtype in (torch.float32, torch.float16))
    assert (full.dtype, half.dtype) == ("float32", "float16")
    assert full.counts["read_bytes"] == 2 * half.counts["read_bytes"]
    assert full.counts["fma"] == half.counts["fma"]


def test_inputs_of_every_form_agree() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    forms = [8, (8, 8), [3, 8, 8], (1, 3, 8, 8), torch.zeros(1, 3, 8, 8), (torch.zeros(1, 3, 8, 8),)]
    forms.append({"input": torch.zeros(1, 3, 8, 8)})
    ledgers = [count(model, form) for form in forms]
    assert {ledger.input_shape for ledger in ledgers} == {(1, 3, 8, 8)}
    assert all(ledger.counts == ledgers[0].counts for ledger in ledgers)


def test_shared_module_runs_twice_and_counts_twice() -> None:
    linear = nn.Linear(4, 4)
    ledger = count(nn.Sequential(linear, linear), torch.zeros(2, 4))
    assert ledger.counts["fma"] == 2 * 2 * 4 * 4
    assert (ledger.params, ledger.entries[0].calls) == (20, 2)


class Gated(nn.Module):
    """Reads a scalar of its own, and if told to, one of its input."""

    def __init__(self, reads_input: bool) -> None:
        super().__init__()
        self.register_buffer("enabled", torch.tensor(True))
        self.reads_input = reads_input

    def forward(self, x: Tensor) -> Tensor:
        if self.reads_input and x.sum() > 1:
            return x
        return x * 3 if self.enabled else x


def test_scalar_buffers_may_be_read_and_activations_may_not() -> None:
    assert count(Gated(False), torch.zeros(5)).counts["mul"] == 5
    with pytest.raises(InputError, match="device='cpu'"):
        count(Gated(True), torch.zeros(5))
    assert count(Gated(True), torch.zeros(5), device="cpu").counts["mul"] == 5
    assert count(Gated(True), torch.ones(5), device="cpu").counts["mul"] == 0


def test_a_result_as_long_as_its_values_say_needs_a_device() -> None:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0] * 3

    with pytest.raises(InputError, match=r"torch\.nonzero.*: count with device='cpu'$"):
        count(Positive(), torch.ones(5))
    assert count(Positive(), torch.ones(5), device="cpu", strict=False).counts["mul"] == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input": 0}, "is no image size"),
        ({"input": (1, 2, 3, 4, 5)}, "is no image size"),
        ({"input": "224"}, "is no image size"),
        ({"input": 224, "convention": "guess"}, "choose one of paper, audited"),
        ({"input": (5, 64, 64)}, r"ResNet does not run on an input of shape \(1, 5, 64, 64\) in 'conv1'"),
    ],
)
def test_bad_input_gives_one_line(given: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        count(Case("resnet18").build(), **given)
    assert "\n" not in str(caught.value)


def test_a_stem_that_was_swapped_by_hand_says_its_channels() -> None:
    """The model still says 3 elsewhere, which a stem behind space to depth may contradict and be right."""
    model = Case("pvt_v2_b0").build()
    stem = model.patch_embed.proj
    model.patch_embed.proj = nn.Conv2d(1, stem.out_channels, stem.kernel_size, stem.stride, stem.padding)
    with pytest.raises(InputError, match=r"'patch_embed\.proj': .*: it takes 1, give in_chans=1 with a size \(H, W\)$"):
        count(model, 64)
    assert count(model, 64, in_chans=1).input_shape == (1, 1, 64, 64)


class Product(nn.Module):
    def forward(self, a):
        return a @ a


def test_complex_products_are_four_real_ones() -> None:
    for convention in ("paper", "audited"):
        assert count(Product(), torch.zeros(64, 64, dtype=torch.complex64), convention=convention).muls == 4 * 64**3
    with pytest.raises(InputError, match=r"aten\.mul\.Tensor .* has no counting rule"):
        count(ComplexSquare(), torch.zeros(4, dtype=torch.complex64))


class ComplexSquare(nn.Module):
    def forward(self, a):
        return a * a


class Fused(nn.Module):
    def forward(self, query, key):
        return nn.functional.scaled_dot_product_attention(query, key, key)


def test_one_query_for_many_keys_counts_the_rows_of_the_result() -> None:
    ledger = count(Fused(), (torch.zeros(1, 1, 100, 64), torch.zeros(8, 1, 8, 64)), convention="audited")
    assert ledger.counts["fma"] == 8 * 100 * 8 * (64 + 64) == 819_200


class Branches(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x * 2, (x,))


def test_operators_that_hold_functions_are_named() -> None:
    assert count(Branches(), torch.zeros(2, 3), device="cpu", strict=False).uncounted == ["cond"]
    with pytest.raises(UncountedOperationError, match="operation cond in the model itself has no counting rule"):
        count(Branches(), torch.zeros(2, 3))
