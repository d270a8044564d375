"""Pictures are drawn from what is there, written whole, and leave the models alone."""

import copy
import json

import pytest
import torch
from matplotlib.text import Text
from tiny_models import tiny_pvt

from ecoformer import EcoFormerSpec, MSASpec, convert, fit_hashes
from ecoformer.kinds import SPECS
from ecoformer.lab.closeness.maps import layer_weights
from ecoformer.lab.closeness.quality_report import plot_energy, plot_errors
from ecoformer.lab.speed.throughput import forward_pass, interleaved_seconds
from ecoformer.lab.study.plots import plot_front
from ecoformer.report.figures import from_zero, legend, panels, style
from ecoformer.report.training import plot_gap, plot_hash_fits, plot_training_curves, read_fits


@pytest.fixture
def models():
    msa = tiny_pvt(depths=(1, 1, 1, 1))
    convert(msa, MSASpec())
    eco = copy.deepcopy(msa)
    convert(eco, EcoFormerSpec(num_bits=6, num_anchors=4, top_k=2))
    fit_hashes(eco, torch.randn(2, 3, 64, 64), seed=0)
    return {"msa": msa.train(), "ecoformer": eco}


def test_layer_weights_are_those_of_the_replaced_layers_and_of_softmax_attention(models):
    weights = layer_weights(models["msa"], torch.randn(2, 3, 64, 64))
    assert {name: tuple(w.shape) for name, w in weights.items()} == {
        "stages.0.blocks.0.attn": (2, 1, 256, 256),
        "stages.1.blocks.0.attn": (2, 2, 64, 64),
        "stages.2.blocks.0.attn": (2, 5, 16, 16),
        "stages.3.blocks.0.attn": (2, 8, 4, 4),
    }
    assert models["msa"].training


def test_training_curves_are_drawn(tmp_path, drawn):
    for name in ("stock", "msa"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("epoch,train_loss,val_top1\n0,1.5,60\n1,0.7,80\n")
    runs = {name: tmp_path / name for name in ("stock", "msa")}
    plot_training_curves(runs, tmp_path / "curves.png", start={"msa": 5})
    accuracy, loss = drawn["curves.png"].axes
    assert [line.get_label() for line in accuracy.lines] == ["stock", "msa"]
    assert [list(line.get_xdata()) for line in accuracy.lines] == [[1, 2], [6, 7]]
    assert list(accuracy.lines[0].get_ydata()) == [60, 80] and list(loss.lines[1].get_ydata()) == [1.5, 0.7]


def test_the_gap_is_that_to_the_end_of_another_run(tmp_path, drawn):
    for name, seen in (("msa", (70.0, None, 80.0)), ("ecoformer", (50.0, 60.0, 78.5))):
        (tmp_path / name).mkdir()
        records = [{"event": "epoch", "step": 9 * epoch, "val_top1": top1} for epoch, top1 in enumerate(seen, start=1)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    plot_gap({name: tmp_path / name for name in ("msa", "ecoformer")}, "msa", tmp_path / "gap.png")
    (axis,) = drawn["gap.png"].axes
    assert {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axis.lines} == {
        "msa": [(9, 10), (27, 0)],
        "ecoformer": [(9, 30), (18, 20), (27, 1.5)],
    }


def test_models_are_timed_in_turns_round_by_round(models):
    images = torch.randn(2, 3, 64, 64)
    passes = {name: forward_pass(model, images) for name, model in models.items()}
    seconds = interleaved_seconds(passes, images.device, rounds=3, min_seconds=0.01)
    assert list(seconds) == ["msa", "ecoformer"]
    assert all(len(seen) == 3 and min(seen) > 0 for seen in seconds.values())


def test_hash_fits_are_drawn_with_what_is_known(tmp_path, drawn):
    records = [{"event": "epoch", "epoch": 0, "step": 9}]
    for block in ("blocks.0.attn", "blocks.1.attn"):
        for step in (0, 5):
            known = {"attention_error": 0.3, "random_error": 0.8, "uniform_error": 0.9, "recall": None}
            record = {"event": "hash_fit", "block": block, "step": step, "bit_balance": 0.9, **known}
            records.append(record | {"held_out_images": 8, "flipped_bits": 0.1, "bit_correlation": 0.2})
    lines = [json.dumps(record) for record in records]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("\n".join(lines) + '\n{"event": "hash_f')  # as a kill in the middle of a write leaves it
    fits = read_fits(tmp_path)
    assert {block: len(found) for block, found in fits.items()} == {"blocks.0.attn": 2, "blocks.1.attn": 2}
    assert plot_hash_fits(tmp_path, tmp_path / "fits.png")
    shown = {axis.get_title(): axis.lines for axis in drawn["fits.png"].axes}
    assert list(shown) == ["attention error (relative L2)", "bit balance", "bit correlation", "flipped bits"]
    errors = [list(line.get_ydata()) for line in shown["attention error (relative L2)"]]
    assert errors == [[0.8, 0.8], [0.9, 0.9], [0.3, 0.3]] * 2
    assert [line.get_label() for line in shown["bit balance"]] == ["blocks.0.attn", "blocks.1.attn"]
    assert [list(line.get_xdata()) for line in shown["bit balance"]] == [[0, 5]] * 2


def test_a_run_without_fits_gets_no_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"event": "epoch", "epoch": 0}\n')
    assert not plot_hash_fits(tmp_path, tmp_path / "fits.png")
    assert not (tmp_path / "fits.png").exists()


def test_fits_that_found_nothing_are_no_fits(tmp_path):
    record = {"event": "hash_fit", "block": "a", "step": 0, "bit_balance": None, "flipped_bits": 0.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert not plot_hash_fits(tmp_path, tmp_path / "fits.png")


def test_a_kind_has_one_colour_whatever_the_label():
    named = [style(label)["color"] for label in ("ecoformer", "ecoformer, 16 bits", "pvt_v2_b0 ecoformer")]
    assert len(set(named)) == 1 and style("ecoformer_tuned")["color"] not in named
    assert len({style(kind)["color"] for kind in (*SPECS, "stock")}) == len(SPECS) + 1


def test_one_legend_names_the_curves_of_all_panels_once():
    figure, axes = panels(1, 2, (8, 3))
    for axis in axes:
        for label in ("msa", "ecoformer"):
            axis.plot([0, 1], [0, 1], label=label)
    axes[1].plot([0, 1], [1, 0], label="uniform")
    legend(figure, axes)
    assert [text.get_text() for text in figure.legends[0].texts] == ["msa", "ecoformer", "uniform"]


def test_long_titles_and_labels_leave_the_panels_their_width(tmp_path, drawn):
    label = ", ".join(f"key_{number}=value" for number in range(20))
    cases = {
        "short": ("x" * 64, "a study"),
        "title": ("x" * 64, "a study of many words, " * 12),
        "label": (label, "a study"),
        "labels": (label, "a study"),
    }
    for name, (words, title) in cases.items():
        labels = [f"{number} {words}" for number in range(14)] if name == "labels" else [words]
        figures = {"top1": 70.0, "energy_pj": 2e6, "attention_energy_pj": 1e6}
        plot_front([{"label": label, **figures} for label in labels], tmp_path / f"{name}.png", title)
        drawn[f"{name}.png"].draw_without_rendering()
        (_, low, _, high) = drawn[f"{name}.png"].legends[0].get_window_extent().extents
        assert low >= 0 and high <= drawn[f"{name}.png"].bbox.height
    widths = {name: [axis.get_position().width for axis in drawn[f"{name}.png"].axes] for name in cases}
    for found in widths.values():
        assert found == pytest.approx(widths["short"], rel=0.1)


def test_titles_of_what_codes_are_worth_end_before_the_legend(tmp_path, drawn):
    blocks = [{"block": f"blocks.{number}.attn", "error": 0.9, "error_uniform": 0.9} for number in range(6)]
    blocks = [block | {"error_shared_qk": 1.0} for block in blocks]
    row = {"setting": "ecoformer:" + "key=value," * 12, "blocks": blocks}
    rows = [row | {"energy": {"paper": {"core_pj": 4e6 + number, "layer_pj": 3e7 + number}}} for number in range(3)]
    for name, plot in (("errors", plot_errors), ("energy", plot_energy)):
        plot(rows, tmp_path / f"{name}.png", "vit_tiny_patch16_224 (a model of many words) on cifar10, 32 px " * 2)
        figure = drawn[f"{name}.png"]
        figure.draw_without_rendering()  # at the figure's own resolution, not that of the file
        (box,) = figure.legends
        right = max(text.get_window_extent().x1 for text in figure.findobj(Text) if "many words" in text.get_text())
        assert right <= box.get_window_extent().x0


@pytest.mark.parametrize("values", [[0.94], [0.94, 0.95], [-0.2, 0.5], [0.0], [5.0, 5.0 + 1e-9]])
def test_an_axis_from_zero_leaves_room_for_markers(values):
    _, (axis,) = panels(1, 1, (4, 3))
    axis.plot(values, values, "o")
    from_zero(axis, "x", "y")
    for low, high in (axis.get_xlim(), axis.get_ylim()):
        assert low == (0 if min(values) >= 0 else pytest.approx(min(values) - 0.042))
        assert high - max(values) >= 0.05 * (high - low)


def test_an_empty_axis_from_zero_stays() -> None:
    _, (axis,) = panels(1, 1, (4, 3))
    from_zero(axis, "y")
    assert axis.get_ylim() == (0, 1)
