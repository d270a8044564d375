"""Hugging Face's BERT, converted or of low rank: saved and read back, or refused."""

import pytest
import torch
from bert_models import KINDS, converted, logits, padded_ids, tiny, transformers
from safetensors.torch import load_file

from ecoformer import InputError, attention_layers, convert
from ecoformer.kinds import make_spec
from ecoformer.model.bert import Ids, from_pretrained
from ecoformer.model.low_rank import LowRankSpec, expand, factorize, low_rank_layers
from ecoformer.nn.msa import MSASpec


@pytest.mark.parametrize("spec", KINDS, ids=str)
def test_saved_and_read_back(spec, tmp_path):
    model, _ = converted(spec)
    expected = logits(model, padded_ids())
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert type(again) is type(model) and not again.training
    assert [layer.module.spec for layer in attention_layers(again)] == [
        layer.module.spec for layer in attention_layers(model)
    ]
    torch.testing.assert_close(logits(again, padded_ids()), expected, rtol=0, atol=0)


def test_transformers_itself_refuses_a_converted_model(tmp_path):
    converted(MSASpec())[0].save_pretrained(tmp_path)
    for cls in (transformers.BertForSequenceClassification, transformers.AutoModel):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            cls.from_pretrained(tmp_path)


@pytest.mark.parametrize("head", ["ForSequenceClassification", "Model"])
def test_a_low_rank_model_that_was_not_converted_is_read_back_by_ours_and_refused_by_transformers(head, tmp_path):
    model, ids = tiny(head=head), padded_ids()
    factorize(Ids(model), LowRankSpec(rank=3), lambda module, name: ".encoder." in name)
    expected = Ids(model)(ids)
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert low_rank_layers(again).keys() == low_rank_layers(model).keys()
    torch.testing.assert_close(Ids(again)(ids), expected, rtol=0, atol=0)
    for cls in (type(model), transformers.AutoModel):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            cls.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.AutoModel.from_pretrained(tmp_path / "again")
    expand(again)
    again.save_pretrained(tmp_path / "dense")
    dense = type(model).from_pretrained(tmp_path / "dense").eval()
    torch.testing.assert_close(Ids(dense)(ids), expected, rtol=1e-5, atol=1e-5)


def test_a_low_rank_model_saved_before_it_was_refused_elsewhere_is_read_back(tmp_path):
    model = tiny()
    factorize(model, LowRankSpec(rank=3), lambda module, name: ".encoder." in name)
    marks = {f"{name}.weight" for name in low_rank_layers(model)}
    state = model.state_dict()
    assert marks <= state.keys()
    model.save_pretrained(tmp_path, state_dict={name: value for name, value in state.items() if name not in marks})
    torch.testing.assert_close(logits(from_pretrained(tmp_path), padded_ids()), logits(model, padded_ids()))


def test_the_last_conversion_is_what_is_read_back_and_ranks_too(tmp_path):
    model, _ = converted(MSASpec())
    convert(model, make_spec("uniform"), lambda module, name: ".1." in name)
    report = factorize(model, LowRankSpec(rank=3), lambda module, name: "intermediate" in name)
    assert len(report.layers) == 2
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert [layer.module.spec.name for layer in attention_layers(again)] == ["msa", "uniform"]
    torch.testing.assert_close(logits(again, padded_ids()), logits(model, padded_ids()), rtol=0, atol=0)


def test_precision_is_kept(tmp_path):
    model, _ = converted(MSASpec(), tiny().bfloat16())
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert {value.dtype for value in again.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(again, padded_ids()), logits(model, padded_ids()), rtol=0, atol=0)


def test_files_that_are_not_those_of_a_model_are_refused(tmp_path):
    with pytest.raises(InputError, match="name the folder that save_pretrained wrote"):
        from_pretrained(tmp_path)
    model, _ = converted(MSASpec())
    model.save_pretrained(tmp_path)
    convert(model, make_spec("uniform"))
    model.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"does not fit its config.json: .*; save the model again"):
        from_pretrained(tmp_path)


def test_positions_that_older_versions_saved_are_passed_over(tmp_path):
    model = tiny()
    state = {**model.state_dict(), "bert.embeddings.position_ids": torch.arange(4)[None]}
    model.save_pretrained(tmp_path, state_dict=state)
    assert "bert.embeddings.position_ids" in load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(logits(from_pretrained(tmp_path), padded_ids()), logits(model, padded_ids()))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", "{bad"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "nonsense"}'),
        ("config.json", '{"model_type": "bert", "architectures": ["Nothing"]}'),
        ("config.json", '{"model_type": "bert"}'),
        ("config.json", '{"model_type": "bert", "architectures": ["BertModel"], "ecoformer": {"0": {}}}'),
        ("config.json", '{"model_type": "bert", "architectures": ["BertModel"], "ecoformer": [1]}'),
        ("model.safetensors", "123"),
    ],
)
def test_a_folder_of_something_else_is_told_in_one_line(tmp_path, file, text):
    tiny().save_pretrained(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=r"holds no model that can be read: .*; save it again"):
        from_pretrained(tmp_path)
