"""What conversion refuses by name: models and layers that compute more, or other, than what can be carried over."""

import pytest
import timm
import torch
from tiny_models import tiny_pvt, tiny_vit

from ecoformer import EcoFormerSpec, InputError, MSASpec, attention_layers, convert

IMG_SIZE = 128
SMALL = EcoFormerSpec(num_bits=6, num_anchors=5, top_k=3)


def test_wrapped_models_are_refused():
    for wrapped in (torch.nn.DataParallel(tiny_pvt()), torch.compile(tiny_pvt())):
        with pytest.raises(InputError, match="wraps the model: convert the model that it was made from, and wrap the"):
            convert(wrapped, SMALL)
    inside = tiny_pvt()
    layer = inside.stages[1].blocks[0]
    layer.attn = torch.compile(layer.attn)  # it would go on with the layer that it was made from
    with pytest.raises(InputError, match=r"^OptimizedModule wraps stages.1.blocks.0.attn: convert the model"):
        convert(inside, SMALL)
    assert {type(layer.module).__name__ for layer in attention_layers(inside)} == {"Attention"}


class Adapter(torch.nn.Linear):
    """More than its weight and bias say, as LoRA's is."""

    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("part", ["q", "kv", "proj"])
def test_projections_that_are_more_than_their_weights_are_refused(part):
    model = tiny_pvt()
    layer = model.stages[0].blocks[0].attn
    linear = layer.get_submodule(part)
    layer.set_submodule(part, Adapter(linear.in_features, linear.out_features))
    with pytest.raises(
        InputError, match=rf"\(stages.0.blocks.0.attn\): {part} \(.*Adapter\) cannot .*: merge or undo it"
    ):
        convert(model, SMALL)
    layer.set_submodule(part, torch.nn.utils.parametrizations.weight_norm(linear))
    with pytest.raises(InputError, match=rf"a parametrization of {part} cannot .*: make it permanent"):
        convert(model, SMALL)
    torch.nn.utils.parametrize.remove_parametrizations(linear, "weight")
    convert(model, SMALL)


class AroundLinear(torch.nn.Module):
    """An adapter that is no Linear."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.down = linear, torch.nn.Conv1d(linear.in_features, linear.out_features, 1)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x_BND):
        return self.linear(x_BND) + self.down(x_BND.mT).mT


def around(layer):
    layer.q = AroundLinear(layer.q)


def hooked(layer):
    layer.register_forward_hook(lambda module, args, out: out + 1)


def patched(layer):
    layer.proj.forward = lambda x: x


def parametrized(layer):
    torch.nn.utils.parametrizations.weight_norm(layer.q)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (parametrized, "a parametrization of q"),
        (around, r"q \(.*AroundLinear\)"),
        (hooked, "a hook or a forward of its own"),
        (patched, "a .* forward of proj"),
    ],
)
def test_what_a_layers_class_and_weights_do_not_say_is_refused(change, what):
    model = tiny_pvt()
    change(model.stages[0].blocks[0].attn)
    with pytest.raises(InputError, match=rf"\(stages.0.blocks.0.attn\): {what} cannot be carried"):
        convert(model, SMALL)
    convert(model, SMALL, lambda module, name: name.startswith("stages.1"))


def test_layers_are_read_before_tokens_are_counted():
    """A quantised model does not run on the meta device; what it is refused for is that it is quantised."""
    quantised = torch.ao.quantization.quantize_dynamic(tiny_pvt(), {torch.nn.Linear})
    with pytest.raises(InputError, match=r"\(stages.0.blocks.0.attn\): q \(torch.ao.* cannot be carried .*: merge"):
        convert(quantised, SMALL, img_size=IMG_SIZE)


def test_an_attention_layer_is_no_model():
    with pytest.raises(InputError, match="Attention is an attention layer: give the model that holds it"):
        convert(tiny_pvt().stages[0].blocks[0].attn, SMALL)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: timm.create_model("resnet18"), "ResNet has no attention that can be converted"),
        (lambda: tiny_pvt(attn_drop_rate=0.1), "attn_drop=0.1 cannot be carried"),
        (lambda: tiny_vit(scale_attn_norm=True), "norm"),
    ],
    ids=["resnet", "attn_drop", "scale_norm"],
)
def test_unsupported_modules_are_refused_by_name(build, message):
    with pytest.raises(InputError, match=message):
        convert(build(), SMALL)


def test_ecoformer_does_not_turn_back_into_msa():
    model = tiny_vit()
    convert(model, SMALL)
    with pytest.raises(InputError, match="holds no keys to build MSA from"):
        convert(model, MSASpec())


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        ("ParallelScalingBlock", "ParallelScalingBlock: its queries, keys, values and MLP come out of one Linear; "),
        ("DiffParallelScalingBlock", "DiffParallelScalingBlock: it is the difference of two softmax attentions; "),
        (None, "DiffAttention: it is the difference of two softmax attentions; "),
    ],
)
def test_a_vit_of_other_blocks_is_told_what_it_lacks(block, reason):
    how = {"attn_layer": "diff"} if block is None else {"block_fn": getattr(timm.models.vision_transformer, block)}
    with pytest.raises(InputError, match=f"VisionTransformer has no attention that can be converted: {reason}choose"):
        convert(tiny_vit(**how), MSASpec())
