"""From a checkpoint to a distilled one: errors and controls by hand, the two command lines, what they refuse."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import distilled_models
import pytest
import timm
import torch
import torch.nn.functional as F
from distilled_models import inputs_of
from PIL import Image
from tiny_models import digits_run, sharp_vit

from ecoformer import InputError, convert, fit_hashes
from ecoformer.cli import distill as distill_command
from ecoformer.cli import export
from ecoformer.config.schema import AugmentConfig, Config, DataConfig, TrainConfig
from ecoformer.data import build_data
from ecoformer.energy import at_measured_shares, count
from ecoformer.files.table import render
from ecoformer.kinds import DistilledHashSpec, DistilledSpec, MSASpec
from ecoformer.lab.closeness import ControlSpec, block_errors, distill
from ecoformer.lab.closeness.distill_report import block_table
from ecoformer.lab.closeness.source import Source
from ecoformer.nn.heads import join_heads, split_heads
from ecoformer.ops.closeness import relative_error
from ecoformer.run.start import model_of_run, read_run

ROOT = Path(__file__).resolve().parents[2]
SMALL = DistilledHashSpec(num_bits=4, fit_steps=15, fit_batch_size=4)


@pytest.fixture
def images():
    return distilled_models.images()


@pytest.fixture
def run(tmp_path):
    return digits_run(tmp_path / "tiny" / "best.pt")


def test_errors_of_the_first_block_by_hand(images):
    source = sharp_vit()
    made = distill(source, SMALL, images[:4], seed=0)
    row, second = block_errors(source, made.model, images[4:], seed=0)
    layer, (x,) = source.blocks[0].attn, inputs_of(source, images[4:])["blocks.0.attn"]
    q, k, v = (split_heads(part, 3) for part in layer.qkv(x).chunk(3, dim=-1))
    target = join_heads(F.scaled_dot_product_attention(q, k, v))
    uniform = join_heads(v.mean(2, keepdim=True).expand_as(v))
    assert (row["block"], row["num_tokens"], second["block"]) == ("blocks.0.attn", 17, "blocks.1.attn")
    assert row["error"] == pytest.approx(
        relative_error(made.model.blocks[0].attn.attention_output(x), target), rel=1e-4
    )
    assert row["error_uniform"] == pytest.approx(relative_error(uniform, target), rel=1e-4)
    assert row["error"] < row["error_random"]
    with pytest.raises(InputError, match="no layer that was fitted to another"):
        block_errors(source, source, images, seed=0)


@pytest.mark.parametrize("mode", ["uniform", "none"])
def test_controls_have_no_attention_and_fit_their_values(mode, images):
    source = sharp_vit()
    model = copy.deepcopy(source)
    convert(model, ControlSpec(mode=mode, fit_steps=30, fit_batch_size=4))
    with pytest.raises(InputError, match="never fitted"):
        model(images)
    reports = fit_hashes(model, images, seed=0)
    assert all(report.attention_error < report.random_error for report in reports)
    layer, x = model.blocks[0].attn, torch.randn(2, 17, 24)
    v = layer.to_v(x)
    torch.testing.assert_close(layer(x), layer.proj(v.mean(1, keepdim=True).expand_as(v) if mode == "uniform" else v))
    assert len(block_errors(source, model, images, seed=0)) == 2


@pytest.mark.parametrize("values", ["real", "shift"])
def test_sums_of_rows_count_at_the_measured_share_of_ones(images, values):
    spec = DistilledSpec(codes="bits", num_features=SMALL.num_bits, values=values, fit_steps=5)
    model = distill(sharp_vit(), spec, images, seed=0).model
    ledger = count(model, 16)
    reduced = at_measured_shares(ledger, model)
    tokens, dim, bits = 17, 24, 12
    layer = model.blocks[0].attn
    terms = {"bit_rows": bits * tokens * dim, "distilled_attention": bits * tokens * 3}
    for place, function in enumerate(("distilled_attention", "bit_rows")):
        before, after = (
            next(
                e.counts["add"] - e.counts["shift"]
                for e in found.entries
                if e.attention == "blocks.0.attn" and e.function == function and e.op.startswith("aten.bmm")
            )
            for found in (ledger, reduced)
        )
        assert before == terms[function]
        assert after == round(float(layer.ones[place]) * before) and 0 < after < before
    assert reduced.counts["fma"] == ledger.counts["fma"]
    alone = count(layer, torch.zeros(1, tokens, dim))
    assert at_measured_shares(alone, layer).counts["add"] < alone.counts["add"]


def test_the_script_writes_a_model_that_goes_on(run, tmp_path, capsys):
    out = tmp_path / "made" / "distilled.pt"
    arguments = ["--checkpoint", str(run), "--num-images", "8", "--num-bits", "4", "--steps", "5", "--held-out", "8"]
    assert distill_command.main([*arguments, "--max-val", "30", "--format", "json", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert {"error", "error_uniform", "error_random", "seconds"} <= figures["blocks"][0].keys()
    assert len(figures["blocks"]) == 2 and figures["source"] == "msa" and figures["num_val"] == 30
    assert {"before", "after", "stock", "msa", "ecoformer"} == figures["energy_pj"].keys()
    assert figures["energy_pj"]["before"] == figures["energy_pj"]["msa"]
    assert 0 <= figures["top1_after"] <= 100 and set(figures["controls"]) == {"uniform", "none"}
    assert "distilled: blocks.1.attn error" in printed.err
    saved = read_run(out)
    assert saved.config.attention["name"] == "distilled_hash" and saved.config.attention["num_bits"] == 4
    assert model_of_run(saved).eval()(torch.randn(2, 3, 16, 16)).isfinite().all()
    pictures = sorted(path.name for path in out.with_name("distilled_pictures").iterdir())
    assert pictures == ["blocks.0.attn.png", "blocks.1.attn.png", "errors.png"]


def test_a_model_of_codes_is_evaluated_and_exported_with_a_byte_or_two_a_weight(run, tmp_path, capsys):
    out, exported = tmp_path / "ternary.pt", tmp_path / "ternary.pt2"
    quick = ["--num-images", "8", "--steps", "5", "--no-controls", "--no-accuracy", "--held-out", "4"]
    ternary = ["--attention", "distilled:num_features=4,projection=ternary,values=shift"]
    assert distill_command.main(["--checkpoint", str(run), *quick, *ternary, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for told in ("4 shifts of 16 levels, ternary, shifted values, from msa", "rows of 8-bit tokens fit into"):
        assert told in printed
    assert export.main([str(out), "--format=torch_export", f"--out={exported}"]) == 0
    program, images = torch.export.load(str(exported)), torch.randn(2, 3, 16, 16)
    layer = "blocks.0.attn."
    kept = {name.removeprefix(layer): x.dtype for name, x in program.state_dict.items() if name.startswith(layer)}
    codes = {"codes.signs": torch.int8, "codes.scale": torch.float32, "codes.bias": torch.float32}
    for part in ("to_v", "proj"):
        codes |= {f"{part}.signs": torch.int8, f"{part}.exponents": torch.int8, f"{part}.bias": torch.float32}
    assert {name: kept[name] for name in kept if "." in name} == codes
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), model_of_run(read_run(out)).eval()(images))


def test_a_distilled_model_remembers_which_layers_were_replaced(run, tmp_path, capsys):
    out = tmp_path / "part.pt"
    quick = ["--num-images", "4", "--steps", "1", "--no-controls", "--no-accuracy", "--layers", "blocks.1.*"]
    assert distill_command.main(["--checkpoint", str(run), *quick, "--out", str(out)]) == 0
    model = model_of_run(read_run(out))
    assert [type(block.attn).__name__ for block in model.blocks] == ["Attention", "DistilledAttention"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model", "pvt_v2_b0", "--num-bits", "8", "--attention", "distilled"],
            "--num-bits 8 is a kind of its own: leave out it or --attention distilled",
        ),
        (["--model", "pvt_v2_b0"], "name the weights to start from: either --checkpoint FILE or --pretrained"),
        (["--pretrained"], "--model is needed with --pretrained"),
        (["--checkpoint", "none.pt"], "checkpoint none.pt does not exist"),
        (["--checkpoint", "none.pt", "--device", "gpu"], "--device gpu does not exist: use auto, cpu, cuda or cuda:N"),
        (["--checkpoint", "RUN", "--model", "pvt_v2_b0"], "holds vit_tiny_patch16_224, not pvt_v2_b0"),
        (["--checkpoint", "RUN", "--num-bits", "0"], "attention.num_bits=0 must be a whole number of at least 1"),
        (["--checkpoint", "RUN", "--num-images", "0"], "--num-images: '0' must be a whole number of at least 1"),
        (["--checkpoint", "RUN", "--num-images", "9999"], "training images of digits: lower --num-images"),
        (["--checkpoint", "RUN", "--data-name", "moon"], "data.name=moon"),
        (["--checkpoint", "RUN", "--out", "FOLDER"], "is a folder: name a file"),
        (["--checkpoint", "RUN", "--format", "yaml"], "invalid choice: 'yaml'"),
        (["--checkpoint", "RUN", "--profile", "45nm_fp32_dram"], "prices memory, which convention=paper does not"),
        (["--checkpoint", "RUN", "--relaxation", "tanh"], "invalid choice: 'tanh'"),
        (["--checkpoint", "RUN", "--layers", "5"], "attention.layers: 5 matches no attention layer"),
    ],
)
def test_the_script_refuses_in_one_line(arguments, message, run, tmp_path, one_line):
    places = {"RUN": run, "FOLDER": tmp_path}
    out = [] if "--out" in arguments else ["--out", tmp_path / "out.pt"]
    assert message in one_line(distill_command.main, *(places.get(word, word) for word in arguments), *out)
    assert not (tmp_path / "out.pt").exists()


def test_the_layers_that_a_distillation_leaves_out_are_built_again_as_they_are(tmp_path):
    torch.manual_seed(0)
    config = Config()
    config.model.name = "pvt_v2_b0"
    config.model.kwargs = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 8, 8], "num_heads": [1, 1, 1, 1]}
    config.attention, config.data.name = {"name": "msa"}, "digits"
    model = timm.create_model("pvt_v2_b0", num_classes=3, **config.model.kwargs)
    convert(model, MSASpec(), img_size=64)
    data = SimpleNamespace(num_classes=3, vocab_size=None, seq_len=None, class_names=["a", "b", "c"])
    source, images = Source(config, model, data, 0), torch.randn(2, 3, 64, 64)
    made = distill(model, SMALL, images, seed=0, filter_fn=source.layer_filter([1])).model
    source.save(tmp_path / "made.pt", made, SMALL, [1], {})
    again = model_of_run(read_run(tmp_path / "made.pt"))
    with torch.no_grad():
        assert torch.equal(again.eval()(images), made.eval()(images))
    assert source.layer_filter(None) is None


def test_a_hashed_run_is_no_source(run, tmp_path, capsys):
    out = tmp_path / "distilled.pt"
    quick = ["--num-images", "4", "--steps", "1", "--no-controls", "--no-accuracy"]
    assert distill_command.main(["--checkpoint", str(run), *quick, "--out", str(out)]) == 0
    assert "top-1" not in capsys.readouterr().out
    assert distill_command.main(["--checkpoint", str(out), *quick, "--out", str(tmp_path / "again.pt")]) == 2
    assert "has distilled attention: give one with stock or MSA attention" in capsys.readouterr().err


def test_a_broken_image_leaves_no_other_one_counted_twice(tmp_path):
    """A lone batch runs twice, for the clock."""
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / place).mkdir(parents=True)
        for name in "012":
            Image.new("RGB", (16, 16), (40 * int(name), 0, 90)).save(tmp_path / place / f"{name}.png")
    (tmp_path / "val" / "a" / "0.png").write_bytes(b"broken")
    folder = DataConfig("folder", root=str(tmp_path), img_size=16, num_workers=0, in_memory=False, max_corrupt=1)
    data = build_data(folder, AugmentConfig(), TrainConfig(batch_size=6, progress=False), seed=0, device="cpu")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))
    _, found = Source(Config(), model, data, epoch=0).outcome(model)
    assert found.shape == (5, 2)


def test_blocks_where_uniform_attention_is_exact_are_told():
    exact = {"num_tokens": 4, "error_random": 0.1, "energy_pj": 1.0, "energy_pj_before": 1.0, "seconds": 0.0}
    blocks = [{**exact, "block": str(error), "error": error, "error_uniform": 0.0} for error in (0.0, 0.5)]
    text = render(block_table({"blocks": blocks}), "table")
    assert "inf" in text and "0%" in text
