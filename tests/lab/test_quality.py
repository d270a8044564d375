"""Quality of replaced attention: floors by hand, controls, settings, and the command line."""

import copy
import json
import math
from functools import partial
from pathlib import Path

import distilled_models
import pytest
import torch
import torch.nn.functional as F
from distilled_models import inputs_of, pvt, vit
from fresh import script
from tiny_models import digits_run

from ecoformer import EcoFormerSpec, InputError, convert, fit_hashes
from ecoformer.cli import hash_quality
from ecoformer.energy import load_profile
from ecoformer.files.table import markdown
from ecoformer.fit.compare import NUM_KEYS
from ecoformer.kinds import DistilledHashSpec, EcoFormerTunedSpec, MSASpec, MultiHeadSelfAttention
from ecoformer.kinds.uniform import UniformAttention
from ecoformer.lab.closeness import measure_setting, parse_setting, quality, uniform_copy
from ecoformer.lab.closeness.controls import random_hash
from ecoformer.lab.closeness.quality_report import plot_energy, plot_errors, quality_table
from ecoformer.lab.closeness.source import pick_images
from ecoformer.nn.heads import split_heads
from ecoformer.nn.projections import read_projections

ROOT = Path(__file__).resolve().parents[2]
TUNED = EcoFormerTunedSpec(num_bits=6, num_anchors=4, fit_steps=15, fit_batch_size=4)
OFFICIAL = EcoFormerSpec(num_bits=6, num_anchors=4, top_k=3, numerator="kernel")


@pytest.fixture
def images():
    return distilled_models.images(6)


def converted(msa, spec, images):
    model = copy.deepcopy(msa)
    convert(model, spec)
    fit_hashes(model, images, seed=0)
    return model


def first_input(model, images):
    return inputs_of(model, images)["blocks.0.attn"][0]


@torch.no_grad()
def test_first_block_by_hand(images):
    msa = vit()
    model = converted(msa, TUNED, images)
    row = quality(msa, model, images)[0]
    layer, x = msa.blocks[0].attn, first_input(msa, images)
    q, k, v = (split_heads(linear, 3) for linear in F.linear(x, layer.qkv.weight, layer.qkv.bias).chunk(3, dim=-1))
    softmax = (q @ k.transpose(-2, -1) / math.sqrt(8)).softmax(-1)
    target = softmax @ v
    shared = (q @ q.transpose(-2, -1) / math.sqrt(8)).softmax(-1) @ v
    uniform = v.mean(2, keepdim=True).expand_as(v)

    def error(out):
        return float((out - target).norm() / target.norm())

    ours = split_heads(model.blocks[0].attn.attention_output(x), 3)
    assert (row["block"], row["num_tokens"], row["num_keys"]) == ("blocks.0.attn", 17, NUM_KEYS)
    assert row["error"] == pytest.approx(error(ours), rel=1e-4)
    assert row["error_uniform"] == pytest.approx(error(uniform), rel=1e-4)
    assert row["error_shared_qk"] == pytest.approx(error(shared), rel=1e-4)
    assert row["recall_chance"] == pytest.approx(NUM_KEYS / 17)
    assert row["recall_chance"] < row["recall"] <= 1 and 0 < row["correlation"] <= 1


def test_softmax_attention_follows_itself_perfectly(images):
    msa = vit()
    model = copy.deepcopy(msa)
    for block in model.blocks:  # timm's attention stays where MSA is asked for: put ours in its place
        source = read_projections(block.attn, "layer")
        block.attn = MultiHeadSelfAttention.from_projections(source, MSASpec())
    for row in quality(msa, model.eval(), images):
        assert row["error"] < 1e-5 and row["recall"] == pytest.approx(1) and row["correlation"] == pytest.approx(1)


def test_both_models_are_left_as_they_were(images):
    msa = vit().train()
    model = converted(msa, TUNED, images)
    msa.blocks[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quality(msa, model, images)
    assert msa.training and not msa.blocks[0].training and model.blocks[0].attn.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in msa.modules())


def test_models_that_cannot_be_compared_are_refused(images):
    msa = vit()
    with pytest.raises(InputError, match="no attention layer differs"):
        quality(msa, copy.deepcopy(msa), images)
    official = converted(msa, OFFICIAL, images)
    with pytest.raises(InputError, match="no plain softmax attention: start from an attention=msa run"):
        quality(official, converted(msa, TUNED, images), images)
    with pytest.raises(InputError, match="no counterpart"):
        quality(torch.nn.Identity(), official, images)


def test_uniform_control_takes_the_mean_of_all_values_and_leaves_the_model_alone(images):
    msa = vit()
    expected = msa(images)
    layer, x = msa.blocks[0].attn, first_input(msa, images)
    value = F.linear(x, layer.qkv.weight[48:], layer.qkv.bias[48:])
    uniform = uniform_copy(msa)
    flat = layer.proj(value.mean(1, keepdim=True)).expand_as(x)
    torch.testing.assert_close(uniform.blocks[0].attn(x), flat)
    assert not torch.allclose(uniform(images), expected)
    assert torch.equal(msa(images), expected)


@pytest.mark.parametrize("spec", [TUNED, OFFICIAL], ids=["tuned", "official"])
def test_random_hash_keeps_the_functions_it_starts_from(spec, images):
    for report in fit_hashes(vit(spec), images, seed=0):
        assert report.objective_after <= report.objective_before
    for report in fit_hashes(vit(random_hash(spec)), images, seed=0):
        assert report.accepted_bits == 0 and report.flipped_bits == 0
        assert report.objective_after == report.objective_before


def test_settings_are_read_as_written():
    assert parse_setting("ecoformer_tuned:num_bits=8,qk=shared") == EcoFormerTunedSpec(num_bits=8, qk="shared")
    assert parse_setting("random-ecoformer_tuned") == EcoFormerTunedSpec(fit_steps=0)
    assert parse_setting("random-ecoformer:fit_steps=3") == EcoFormerSpec(fit_steps=0)
    assert parse_setting("random-distilled_hash:joint_steps=3") == DistilledHashSpec(fit_steps=0, joint_steps=0)
    assert parse_setting("ecoformer:fit_lr=0.5,clamp=true") == EcoFormerSpec(fit_lr=0.5, clamp=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stock", "stock attention replaces nothing"),
        ("random-msa", "attention=msa has no hash functions to leave random"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_setting(text)


def test_a_measured_row_is_complete_and_repeats(images, tmp_path):
    msa = vit()
    setting = "ecoformer_tuned:num_bits=6,num_anchors=4,fit_steps=15"
    options = {"calibration": images, "held_out": images[:4], "seed": 2, "profile": load_profile("45nm_fp32")}
    row, again = (measure_setting(msa, setting, accuracy=lambda model: 12.5, **options) for _ in range(2))
    assert [block["error"] for block in row["blocks"]] == [block["error"] for block in again["blocks"]]
    assert row["top1"] == 12.5 and row["energy"]["audited"]["uncounted"] == []
    assert row["blocks"][0]["fit"]["attention_error"] > 0
    for convention in ("paper", "audited"):
        energy = row["energy"][convention]
        assert 0 < energy["core_pj"] < energy["layer_pj"]
    json.dumps(row, allow_nan=False)
    text = markdown(quality_table([row], row))
    assert "| ecoformer_tuned:num_bits=6,num_anchors=4,fit_steps=15 | 2 |" in text and "| 1.00 | 1.00 | 1.00 |" in text
    plot_errors([row], tmp_path / "errors.png", "title")
    plot_energy([row], tmp_path / "energy.png", "title")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("errors.png", "energy.png"))


def test_uniform_layers_are_those_of_a_default_conversion():
    """In a pyramid, all but those of the last stage."""
    model = pvt()
    convert(model, MSASpec())
    converted_to = copy.deepcopy(model)
    convert(converted_to, EcoFormerTunedSpec())
    changed = [name for name, module in converted_to.named_modules() if hasattr(module, "fit_hash")]
    assert len(changed) == 3
    uniform = [name for name, module in uniform_copy(model).named_modules() if isinstance(module, UniformAttention)]
    assert uniform == changed


def test_held_out_images_are_spread_over_the_set_whatever_the_batches():
    everything = torch.arange(50.0).view(50, 1, 1, 1)
    picks = [
        pick_images([(batch, batch) for batch in everything.split(size)], 50, 7, seed=0).flatten()
        for size in (8, 50, 3)
    ]
    assert all(torch.equal(pick, picks[0]) for pick in picks)
    assert len(picks[0].unique()) == 7 and picks[0].max() > 25 > picks[0].min()
    with pytest.raises(InputError, match="51 held-out images asked for, but there are 50"):
        pick_images([], 50, 51, seed=0)


def test_the_command_writes_what_the_committed_results_hold(tmp_path, capsys):
    command = ["--checkpoint", str(digits_run(tmp_path / "best.pt")), "--fit-images", "8", "--images", "4", "--top1"]
    command += ["--settings", "ecoformer:num_anchors=4,num_bits=4,fit_steps=1,top_k=2", "random-distilled_hash"]
    assert hash_quality.main([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "random-distilled_hash, seed 0: worst block " in printed.err and "images: msa " in printed.out
    found = json.loads((tmp_path / "out" / "quality.json").read_text())
    committed = json.loads((ROOT / "results" / "hash_quality" / "vit_cifar10" / "quality.json").read_text())
    for mine, theirs in ((found, committed), (found["rows"][0], committed["rows"][0])):
        assert list(mine) == list(theirs)
    assert list(found["rows"][0]["blocks"][0]) == list(committed["rows"][0]["blocks"][0])
    assert set(found["top1"]) == {"msa", "uniform"} and found["epochs"] == 3
    table = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert table[0].endswith("| worst | recall | corr. | core | layer | core audited | top-1 % |") and len(table) == 4
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"errors.png", "energy.png"}


def test_a_sweep_is_refused_before_anything_is_fitted_or_written_over(tmp_path, one_line):
    command = ["--checkpoint", str(digits_run(tmp_path / "best.pt")), "--fit-images", "8", "--images", "4"]
    refused = partial(one_line, hash_quality.main, *command)
    assert "blocks.0.attn has 17 tokens: num_anchors=25 > 17" in refused("--settings", "uniform", "ecoformer")
    assert "measured by this attention; name one of binary_qk, distilled, " in refused("--settings", "uniform", "msa")
    assert "prices memory, which convention=paper does not" in refused("--profile", "45nm_fp32_dram")
    out = ["--out", str(tmp_path / "out")]
    assert hash_quality.main([*command, *out, "--settings", "uniform", "none"]) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert "quality.json of an earlier sweep: name another folder, or remove it" in refused(*out, "--settings=uniform")
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_pictures_of_more_settings_than_there_are_markers(tmp_path):
    block = {"block": "blocks.0.attn", "error": 0.5, "error_uniform": 1.0, "error_shared_qk": 0.9}
    energy = {"paper": {"core_pj": 1e6, "layer_pj": 2e6}}
    rows = [{"setting": f"ecoformer:num_bits={bits}", "blocks": [block], "energy": energy} for bits in range(1, 61)]
    for plot in (plot_energy, plot_errors):
        plot(rows, tmp_path / "many.png", "sixty code lengths")


def test_a_run_without_softmax_attention_is_refused(tmp_path, one_line):
    refused = one_line(hash_quality.main, "--checkpoint", digits_run(tmp_path / "best.pt", "stock"))
    assert "has stock attention: give one of an attention=msa run" in refused


def test_the_script_refuses_in_one_line(fresh, tmp_path):
    done = fresh(script, ROOT / "scripts" / "hash_quality.py", ["--checkpoint", str(tmp_path / "none.pt")])
    assert done.wait() == 2 and done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
