"""What the first calls of somebody new meet: names that the pages use, arguments of another kind, a forgotten fit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import ecoformer
from ecoformer import EcoFormerSpec, InputError, MSASpec, convert

DOCS = Path(__file__).parents[2] / "docs"


def test_what_the_pages_import_is_there() -> None:
    """Every name of `from ecoformer import ...`, and every spec that a block with one calls."""
    blocks = [
        block for page in DOCS.glob("*.md") for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    ]
    used = set()
    for block in blocks:
        if imported := re.findall(r"^from ecoformer import (.+)$", block, re.M):
            used |= {*", ".join(imported).split(", "), *re.findall(r"\b(\w+Spec)\(", block)}
    assert {"DistilledSpec", "EcoFormerSpec", "MSASpec", "convert", "fit_hashes"} <= used
    assert [name for name in sorted(used) if not hasattr(ecoformer, name)] == []


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        ("pvt_v2_b0", MSASpec(), "convert: 'pvt_v2_b0' is no Module: create the model first"),
        (nn.Linear(2, 2), "ecoformer", "convert: 'ecoformer' is no AttentionSpec: give one, as EcoFormerSpec()"),
        (nn.Linear(2, 2), EcoFormerSpec, "EcoFormerSpec'> is no AttentionSpec"),
        (nn.Linear(2, 2), None, "convert: None is no AttentionSpec"),
    ],
    ids=["name", "kind", "class", "none"],
)
def test_what_is_no_model_and_no_spec_is_one_line(model: Any, spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        convert(model, spec)


def test_a_forgotten_fit_names_a_function_that_is_there() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=24, depth=1, num_heads=2).eval()
    convert(model, EcoFormerSpec(num_bits=4, num_anchors=4, top_k=2))
    with pytest.raises(InputError, match="never fitted") as caught, torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    package, _, name = re.findall(r"call ([\w.]+)\(", str(caught.value))[0].rpartition(".")
    assert package == "ecoformer" and callable(getattr(ecoformer, name))
