"""The whole-layer path is taken where it computes the same, and only there."""

import pytest
import torch
from torch import nn

import ecoformer.kinds.ecoformer as module_file
from ecoformer.kinds import EcoFormerAttention, EcoFormerSpec


@pytest.fixture
def layer():
    torch.manual_seed(0)
    attention = EcoFormerAttention(12, 3, EcoFormerSpec(num_bits=8, num_anchors=5, top_k=2, fit_steps=2)).eval()
    x = torch.randn(2, 35, 12)
    attention.fit_hash(x, torch.Generator().manual_seed(0))
    return attention, x


@pytest.fixture
def whole_layers(monkeypatch):
    """Counts the calls of the whole-layer path."""
    calls, real = [], module_file.kernel_hash_layer
    monkeypatch.setattr(module_file, "kernel_hash_layer", lambda *args: calls.append(1) or real(*args))
    return calls


@pytest.mark.parametrize("grad", [False, True])
def test_both_paths_compute_the_same(layer, whole_layers, monkeypatch, grad):
    attention, x = layer
    results = []
    for whole in (True, False):
        if not whole:
            monkeypatch.setattr(module_file, "only_weights_matter", lambda *args: False)
        attention.zero_grad()
        with torch.set_grad_enabled(grad):
            results.append([attention(x)])
        if grad:
            results[-1][0].square().sum().backward()
            results[-1] += [p.grad for p in attention.parameters()]
    assert len(whole_layers) == 1
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def doubled(linear):
    other = Doubled(linear.in_features, linear.out_features)
    other.load_state_dict(linear.state_dict())
    return other


def test_a_linear_layer_of_another_class_is_called(layer, whole_layers):
    attention, x = layer
    before = attention(x)
    attention.proj = doubled(attention.proj)
    torch.testing.assert_close(attention(x), 2 * before)
    assert len(whole_layers) == 1


@pytest.mark.parametrize("name", ["to_qk", "to_v", "proj"])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_the_linear_layers_run(layer, whole_layers, name, register):
    attention, x = layer
    seen = []
    handle = getattr(attention.get_submodule(name), register)(lambda *args: seen.append(1))
    attention(x)
    assert seen and not whole_layers
    handle.remove()
    attention(x)
    assert whole_layers


def test_hooks_of_all_modules_run(layer, whole_layers):
    attention, x = layer
    called = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: called.append(module))
    attention(x)
    handle.remove()
    assert {attention.to_qk, attention.to_v, attention.proj} <= set(called) and not whole_layers


def test_autocast_and_tracing_take_the_other_path(layer, whole_layers):
    attention, x = layer
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(x).dtype == torch.bfloat16
    attention.bfloat16()(x.bfloat16())
    attention.float()
    with torch.no_grad():
        torch.jit.trace(attention, x, check_trace=False)  # the check runs eagerly
        torch.export.export(attention, (x,), strict=False)
    assert not whole_layers
