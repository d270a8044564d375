"""The example in CONTRIBUTING.md works as printed."""

import re
from pathlib import Path

import pytest
import timm
import torch
from kind_registry import kinds_restored

from ecoformer import InputError, convert
from ecoformer.energy import count
from ecoformer.kinds import make_spec


@pytest.fixture
def example():
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    with kinds_restored():
        exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "example"})
        yield


@pytest.mark.usefixtures("example")
def test_the_example_attention_converts_and_runs():
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=4, embed_dim=24, num_heads=3, depth=1, num_classes=4
    ).eval()
    qkv = model.blocks[0].attn.qkv
    report = convert(model, make_spec("halfway"))
    assert "HalfwayAttention; copied qkv, proj; dropped query rows, key rows; new nothing" in str(report)
    attention, x = model.blocks[0].attn, torch.randn(2, 17, 24)
    value = torch.nn.functional.linear(x, qkv.weight[48:], qkv.bias[48:])
    torch.testing.assert_close(attention(x), attention.proj((value + value.mean(1, keepdim=True)) / 2))
    assert attention.paper_core_ops(17) == (18 * 24, 34 * 24)
    assert convert(model, make_spec("halfway")).replaced == []
    assert not count(model, 16).uncounted
    with pytest.raises(InputError, match="HalfwayAttention takes no attn_mask: its tokens cannot be left out"):
        attention(x, attn_mask=torch.ones(17, 17))
