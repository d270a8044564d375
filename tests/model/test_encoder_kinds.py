"""The encoder of sequences with every attention kind: padding changes nothing, through the whole model and its fits."""

import copy

import pytest
import timm
import torch
from kind_cases import SMALL, TOKENS

import ecoformer.models  # noqa: F401
from ecoformer.fit.hashes import fit_hashes
from ecoformer.kinds import SPECS, make_spec
from ecoformer.model.convert import convert

KINDS = [name for name in SPECS if name not in ("linear_sra", "linformer")]
LENGTHS = (TOKENS, 12, 17, 9, 21, 6)


def sequences(lengths=LENGTHS):
    ids = torch.randint(1, 30, (len(lengths), TOKENS))
    return ids.masked_fill(torch.arange(TOKENS)[None] >= torch.tensor(lengths)[:, None], 0)


def encoder(kind, **options):
    model = timm.create_model("lra_encoder", vocab_size=30, seq_len=TOKENS, num_classes=4, embed_dim=12, num_heads=3)
    model = model.double().eval()
    convert(model, make_spec(kind, {**SMALL.get(kind, {}), **options}), img_size=TOKENS)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_sequence_gives_what_it_gives_alone(kind):
    model, ids = encoder(kind), sequences()
    fit_hashes(model, ids, seed=0)
    alone = torch.cat([model(row[None, :length]) for row, length in zip(ids, LENGTHS, strict=True)])
    torch.testing.assert_close(model(ids), alone, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["distilled", "distilled_hash"])
def test_a_joint_fit_sees_real_tokens_alone(kind):
    length = 16
    ids = sequences((length,) * 8)
    padded = encoder(kind, joint_steps=3, joint_batch_size=4)
    plain = copy.deepcopy(padded)
    reports = []
    for model, rows in ((padded, ids), (plain, ids[:, :length])):
        fit_hashes(model, rows[:6], seed=0, held_out=rows[6:], on_joint=reports.append)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(padded.state_dict()[name], value, rtol=1e-6, atol=1e-8, msg=name)
    assert reports[0].divergence_after == pytest.approx(reports[1].divergence_after, rel=1e-6)
    assert reports[0].divergence_after != reports[0].divergence_before
