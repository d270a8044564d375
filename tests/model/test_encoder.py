"""The encoder for sequences: padding changes nothing, it is a timm model, and its example inputs are ids."""

import pytest
import timm
import torch

import ecoformer.models  # noqa: F401  registers the encoder
from ecoformer import InputError, convert
from ecoformer.energy import count
from ecoformer.energy.summary import summarize
from ecoformer.kinds import make_spec
from ecoformer.model.create import create
from ecoformer.model.layers import attention_layers, called_modules, require_input, token_counts
from ecoformer.model.low_rank import LowRankSpec, factorize
from ecoformer.nn.inputs import example_input, own_size, takes_sequences

SIZES = {"vocab_size": 20, "seq_len": 12, "num_classes": 3, "embed_dim": 16, "num_heads": 2}


def encoder(**options):
    torch.manual_seed(0)
    return create("lra_encoder", options=SIZES | options).eval()


def padded(ids_BN, lengths):
    """The sequences with padding from each one's length on."""
    return ids_BN.where(torch.arange(ids_BN.shape[1]) < torch.tensor(lengths)[:, None], 0)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
def test_padding_changes_neither_output_nor_gradients(fused):
    def run(batches):
        model = encoder(depth=2).double()
        for layer in attention_layers(model):
            layer.module.fused_attn = fused
        logits = torch.cat([model(ids) for ids in batches])
        logits.square().sum().backward()
        return logits, {name: p.grad for name, p in model.named_parameters()}

    lengths = (12, 5, 1)
    batch = padded(torch.randint(1, 20, (3, 12), generator=torch.Generator().manual_seed(1)), lengths)
    whole, grads = run([batch])
    apart, expected = run([batch[i : i + 1, :n] for i, n in enumerate(lengths)])
    torch.testing.assert_close(whole, apart)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], msg=name)
    assert not grads["token_embed.weight"][0].any() and grads["token_embed.weight"][1:].any()
    short = run([batch[1:]])[1]["pos_embed"]
    assert short[0, :5].any() and not short[0, 5:].any()


def test_what_is_said_of_the_published_setting():
    model = timm.create_model("lra_encoder", vocab_size=257, seq_len=100)
    block = model.blocks[1]
    assert len(model.blocks) == 2 and model.num_features == 64 and block.attn.num_heads == 2
    assert block.mlp.fc1.out_features == 128 and model.pos_embed.shape == (1, 100, 64)
    assert not model.token_embed.weight[0].any() and model.no_weight_decay() == {"pos_embed", "token_embed.weight"}
    assert model.get_classifier() is model.head and model.pretrained_cfg["input_size"] == (512,)
    model.reset_classifier(0)
    assert model(torch.ones(2, 7, dtype=torch.int64)).shape == (2, 64)
    model.reset_classifier(5)
    ids = torch.ones(2, 7, dtype=torch.int64)
    assert model.num_classes == 5 and model(ids).shape == (2, 5)
    features = model.eval().forward_features(ids)
    torch.testing.assert_close(model.forward_head(features), model(ids))
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.mean(dim=1))
    with pytest.raises(InputError, match="global_pool='token'"):
        model.reset_classifier(5, "token")


def test_gradient_checkpointing_changes_no_gradient():
    def grads(enable):
        model = encoder().train()
        model.set_grad_checkpointing(enable)
        model(padded(torch.ones(2, 12, dtype=torch.int64), (12, 4))).sum().backward()
        return [p.grad for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(grads(True), grads(False), strict=True))


def test_too_many_tokens_are_one_line():
    with pytest.raises(InputError, match=r"sequences of 13 tokens > seq_len=12: lower data.seq_len, or create"):
        encoder()(torch.ones(1, 13, dtype=torch.int64))
    with pytest.raises(InputError, match="13 tokens > seq_len=12"):
        require_input(encoder(), 13)
    with pytest.raises(InputError, match=r"LraEncoder does not accept 8x8 images: "):
        require_input(encoder(), torch.zeros(1, 3, 8, 8))


def test_examples_of_both_kinds():
    model = encoder()
    image_model = timm.create_model("pvt_v2_b0", depths=(1, 1, 1, 1))
    assert takes_sequences(model) and takes_sequences("lra_encoder")
    assert not takes_sequences(image_model) and not takes_sequences("pvt_v2_b0")
    assert own_size(model) == 12 and own_size(image_model) == (224, 224)
    ids = example_input(model, 9, 4)
    assert ids.shape == (4, 9) and ids.dtype == torch.int64 and ids.min() >= 1 and ids.max() < 20
    assert torch.equal(ids, example_input(model, 9, 4)) and not torch.equal(ids, example_input(model, 9, 4, seed=1))
    assert example_input(image_model, 32, 2).shape == (2, 3, 32, 32)
    assert example_input(image_model, (32, 64), device="meta").shape == (1, 3, 32, 64)
    with pytest.raises(InputError, match=r"input=\(3, 4\) is no number of tokens"):
        example_input(model, (3, 4))


def test_conversion_reads_timms_attention_in_it():
    model = encoder()
    before = attention_layers(model)
    assert [(layer.where, layer.stage, layer.num_prefix) for layer in before] == [
        ("blocks.0.attn", 1, 0),
        ("blocks.1.attn", 1, 0),
    ]
    tokens = {"blocks.0.attn": 9, "blocks.1.attn": 9}
    example = torch.ones(5, 9, dtype=torch.int64)
    assert token_counts(model, 9) == token_counts(model, example) == token_counts(model, {"ids_BN": example}) == tokens
    report = convert(model, make_spec("linformer", {"proj_dim": 4}), example_input=example)
    assert [(change.num_tokens, change.spec.num_tokens) for change in report.replaced] == [(9, 9), (9, 9)]


def test_low_rank_weights_of_it():
    assert called_modules(encoder()) >= {"token_embed", "blocks.0.attn.qkv", "head"}
    model = encoder()
    report = factorize(model, LowRankSpec(rank=2))
    assert len(report.layers) == 8 and model(torch.ones(1, 4, dtype=torch.int64)).isfinite().all()


def test_count_of_one_layer_by_hand():
    """A block on 12 tokens, 16 channels, 2 heads, MLP 32; the mask costs comparisons, the mean sums."""
    N, D, H, M, K = 12, 16, 2, 32, 3
    ledger = count(encoder(depth=1), N)
    assert ledger.input_shape == (1, N)
    assert ledger.counts["fma"] == N * D * 4 * D + 2 * N * N * D + 2 * N * D * M + D * K
    assert sum(e.counts["add"] for e in ledger.entries if e.part == "Linear") == N * 4 * D + N * (M + D) + K
    assert sum(e.counts["compare"] for e in ledger.entries if e.op == "aten.ne.Scalar") == 2 * N
    over_tokens, real = (e.counts for e in ledger.entries if e.op == "aten.sum.dim_IntList")
    assert over_tokens["add"] == (N - 1) * D and real["popcount"] == N - 1
    # The paper counts the core's products, and the scale of every weight.
    assert summarize(encoder(depth=1), N, "paper")["attention_muls"] == 2 * N * N * D + H * N * N
