"""Hugging Face's BERT: converted, masked, fitted, counted, trained by Trainer, or refused."""

import copy

import pytest
import torch
from bert_models import KINDS, TOKENS, converted, logits, padded_ids, tiny, transformers

from ecoformer import InputError, attention_layers, convert, fit_hashes
from ecoformer.energy import count
from ecoformer.kinds import make_spec
from ecoformer.model.bert import Ids, from_pretrained
from ecoformer.model.layers import token_counts
from ecoformer.nn.msa import MSASpec


@pytest.mark.parametrize("family", ["Bert", "Roberta", "XLMRoberta", "Camembert", "Electra"])
def test_msa_computes_what_the_model_did(family):
    model = tiny(family)
    padding = model.config.pad_token_id
    ids = padded_ids(padding)
    expected = [logits(model, ids, padding), logits(model, ids, attention_mask=None)]
    report = convert(model, MSASpec())
    assert len(report.replaced) == 2 and not report.kept
    assert report.replaced[0].copied == ("self.query", "self.key", "self.value", "output.dense")
    assert report.replaced[0].dropped == ()
    for found, wanted in zip(
        [logits(model, ids, padding), logits(model, ids, attention_mask=None)], expected, strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(*expected, atol=1e-3), "padding matters to this model"
    wrapped = Ids(model)
    torch.testing.assert_close(wrapped(ids), expected[0], rtol=1e-5, atol=1e-5)
    assert wrapped(torch.full((1, wrapped.seq_len), 9)).isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):
        wrapped(torch.full((1, wrapped.seq_len + 1), 9))
    assert len(convert(model, MSASpec()).kept) == 2


@pytest.mark.parametrize("spec", KINDS, ids=str)
def test_each_kind_converts_and_does_not_look_at_padding(spec):
    model, report = converted(spec)
    assert [change.spec.name for change in report.replaced] == [spec.name] * 2
    ids = padded_ids()
    out = logits(model, ids)
    assert out.isfinite().all()
    if spec.name != "linformer" and getattr(spec, "form", "") != "grid":  # these are made for one number of positions
        torch.testing.assert_close(logits(model, ids[1:2, :9]), out[1:2], rtol=1e-4, atol=1e-5)
    other = torch.where(ids == 0, 7, ids)
    torch.testing.assert_close(
        logits(model, other, attention_mask=(ids != 0).long()), out, rtol=1e-4, atol=1e-5, msg="what padding holds"
    )
    assert count(Ids(model), TOKENS).attention().muls >= 0


def test_a_kind_that_takes_no_masks_says_so():
    model = tiny()
    convert(model, make_spec("linear_sra", {"pool_size": 3}))
    with pytest.raises(InputError, match="LinearSRAAttention takes no attn_mask"):
        logits(model, padded_ids())


def test_layers_that_are_filtered_out_stay_and_take_the_same_masks():
    model, ids = tiny(), padded_ids()
    expected = logits(model, ids)
    report = convert(model, MSASpec(), lambda module, name: ".0." in name)
    assert [change.name for change in report.replaced] == ["bert.encoder.layer.0.attention"]
    torch.testing.assert_close(logits(model, ids), expected, rtol=1e-5, atol=1e-5)
    names = [layer.name for layer in attention_layers(model)]
    assert names == ["bert.encoder.layer.0.attention.attn", "bert.encoder.layer.1.attention"]


def test_gradients_and_dropout_are_bert_s_own():
    model, ids = tiny(hidden_dropout_prob=0.0), padded_ids()
    twin = copy.deepcopy(model)
    convert(twin, MSASpec())
    for each in (model, twin):
        each.train()(input_ids=ids, attention_mask=(ids != 0).long(), labels=ids[:, 0] % 2).loss.backward()
    stock, ours = (each.bert.encoder.layer[0].attention for each in (model, twin))
    torch.testing.assert_close(ours.attn.proj.weight.grad, stock.output.dense.weight.grad, rtol=1e-4, atol=1e-6)
    rows = torch.cat([getattr(stock.self, part).weight.grad for part in ("query", "key", "value")])
    torch.testing.assert_close(ours.attn.qkv.weight.grad, rows, rtol=1e-4, atol=1e-6)
    assert (
        converted(MSASpec(), tiny(hidden_dropout_prob=0.4))[0].bert.encoder.layer[0].attention.output.dropout.p == 0.4
    )


def test_the_ledger_and_token_counts_take_ids():
    model = tiny()
    tokens = token_counts(Ids(model), TOKENS)
    assert tokens == {f"model.bert.encoder.layer.{n}.attention": TOKENS for n in (0, 1)}
    example = {"input_ids": padded_ids()[:1], "attention_mask": torch.ones(1, TOKENS, dtype=torch.int64)}
    before = {convention: count(Ids(model), TOKENS, convention=convention) for convention in ("audited", "paper")}
    core = 2 * 2 * TOKENS**2 * 24  # two layers, q k and weights v
    assert before["paper"].attention().muls == core + 2 * 3 * TOKENS**2
    report = convert(model, MSASpec(), example_input=example)
    assert report.replaced[0].num_tokens == TOKENS
    for convention, ledger in before.items():
        assert count(Ids(model), TOKENS, convention=convention).muls == ledger.muls
    convert(model, make_spec("uniform"))
    assert count(Ids(model), TOKENS).muls < before["audited"].muls
    model = tiny()
    with pytest.raises(InputError, match="has 25 tokens: num_anchors=26"):
        convert(model, make_spec("ecoformer", {"num_anchors": 26}), example_input=example)
    assert model.config._attn_implementation == "sdpa", "a refused model is as it was"


def test_a_joint_fit_looks_at_real_tokens_alone():
    spec = make_spec("distilled", {"num_features": 6, "fit_steps": 5, "joint_steps": 3, "joint_batch_size": 6})
    ids = padded_ids()
    longer = torch.cat([ids, torch.zeros(6, 5, dtype=ids.dtype)], dim=1)
    reports = []
    for some in (ids, longer):
        model = tiny()
        convert(model, spec)
        fit_hashes(Ids(model), some, seed=0, held_out=some, on_joint=reports.append)
    assert reports[0].divergence_before > 0
    for key in ("divergence_before", "divergence_after", "held_out_divergence_after"):
        assert getattr(reports[0], key) == pytest.approx(getattr(reports[1], key), rel=1e-3)


def test_a_model_without_a_head_gives_the_mean_of_its_real_tokens():
    model, ids = tiny(head="Model"), padded_ids()
    hidden = model(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
    torch.testing.assert_close(Ids(model)(ids)[1], hidden[1, :9].mean(dim=0), rtol=1e-5, atol=1e-5)


def test_trainer_trains_it(tmp_path):
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate")
    model, _ = converted(make_spec("distilled", {"num_features": 6, "fit_steps": 5}))
    ids = padded_ids()
    data = [{"input_ids": row, "attention_mask": (row != 0).long(), "labels": row[0] % 2} for row in ids]
    before = {name: value.clone() for name, value in model.named_parameters()}
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=3, report_to=[], use_cpu=True, save_steps=2
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    assert trainer.train().training_loss > 0
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert {f"bert.encoder.layer.{n}.attention.attn.proj.weight" for n in (0, 1)} <= changed
    arguments.max_steps = 3
    trainer = transformers.Trainer(model=copy.deepcopy(model), args=arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 3
    again = from_pretrained(tmp_path / "checkpoint-2")
    torch.testing.assert_close(logits(again, ids), logits(model.eval(), ids), rtol=0, atol=0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"is_decoder": True}, r"is_decoder=True \(causal attention\) cannot be carried .* load the model with is_dec"),
        (
            {"attention_probs_dropout_prob": 0.1},
            "attention_probs_dropout_prob=0.1 cannot .*attention_probs_dropout_prob=0 ",
        ),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' cannot be carried"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(options, message):
    model = tiny(**options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        convert(model, MSASpec())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_cross_attention_is_refused_by_name():
    model = tiny(head="Model", is_decoder=True, add_cross_attention=True)
    with pytest.raises(
        InputError, match="cross attention, whose keys are those of another sequence, cannot be carried"
    ):
        convert(model, MSASpec(), lambda module, name: name.endswith("crossattention"))


@pytest.mark.parametrize(
    "family, options, reason",
    [
        ("ModernBert", {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}, "rotary positions (RoPE) turn"),
        ("RoFormer", {}, "rotary positions (RoPE) turn"),
        ("MPNet", {}, "relative positions (relative_attention) are added inside it"),
        ("GPT2", {"n_layer": 1}, "it is causal"),
        ("DistilBert", {"dim": 24, "n_heads": 3}, "only BertAttention, RobertaAttention"),
    ],
)
def test_other_models_are_refused_with_the_reason(family, options, reason):
    config = getattr(transformers, f"{family}Config")(
        vocab_size=60, hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=32, **options
    )
    with pytest.raises(InputError) as error:
        convert(getattr(transformers, f"{family}Model")(config), MSASpec())
    assert f"{family}Model has no attention that can be converted: {reason}" in str(error.value)


def test_masks_of_queries_are_refused():
    model, ids = tiny(), padded_ids()
    convert(model, MSASpec())
    with pytest.raises(InputError, match="takes which keys take part alone"):
        logits(model, ids, attention_mask=torch.ones(6, 1, TOKENS, TOKENS, dtype=torch.bool).tril())


def test_a_refused_conversion_leaves_the_model_as_it_was():
    model = tiny()
    layers = model.bert.encoder.layer
    layers[1].attention.self.dropout.p = 0.1
    names, layer = set(model.state_dict()), layers[0].attention
    with pytest.raises(InputError, match=r"layer\.1\.attention: attention_probs_dropout_prob=0\.1"):
        convert(model, MSASpec())
    assert set(model.state_dict()) == names
    assert layers[0].attention is layer
    assert not hasattr(model.config, "ecoformer")
