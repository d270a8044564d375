"""What a user types for a text key stays what it was, on the command line, in sweeps and in child processes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable

import pytest
from app_helpers import compose_config
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from ecoformer.cli import app as cli
from ecoformer.config.overrides import as_typed
from ecoformer.config.schema import Config, EvalConfig
from ecoformer.lab.study.prediction import compose_run

TEXTS = [
    "2024_11_27",
    "1e3",
    "007",
    "true",
    "run/epoch=3,acc(1)[x]{y}.pt",
    "Zürich/模型",
    "it's",
    'say "so"',
    "a b",
    " padded ",
    "C:\\x\\",
    "[half",
    "'",
    "x:y",
    "#1",
    "100%",
    "~/runs",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("key", ["output_dir", "name", "+data.root"])
def test_a_text_is_kept_as_typed_also_when_a_child_reads_it_again(key: str, text: str) -> None:
    once = as_typed([f"{key}={text}"], Config)
    (override,) = OverridesParser.create().parse_overrides(once)
    assert override.value() == text
    assert as_typed(once, Config) == once


@pytest.mark.parametrize(
    "argument",
    [
        "name=plain", "name='1e3'", 'name="1e3"', "name=null", "name=", "name=${seed}", "output_dir=runs/${name}",
        "name=range(3)", "attention=glob(*)", "train.epochs=1_0", "train.epochs==3", "+model.kwargs.x=1e3",
        "data=digits", "~experiment", "train.freeze=[head.*,'1e3']", "unknown=1e3",
    ],
)  # fmt: skip
def test_what_is_left_alone(argument: str) -> None:
    assert as_typed([argument], Config) == [argument]


@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("name=a,1e3", ["a", "1e3"]),
        ("data.root=/x=1,'/y,z'", ["/x=1", "/y,z"]),
        ("name=choice(007,1_0)", ["007", "1_0"]),
        ("data.root=/x(1,2),/é", ["/x(1,2)", "/é"]),
    ],
)
def test_each_value_of_a_sweep_is_kept_as_typed(argument: str, values: list[str]) -> None:
    (override,) = OverridesParser.create().parse_overrides(as_typed([argument], Config, sweeps=True))
    elements = [OverridesParser.create().parse_override(f"x={each}") for each in override.sweep_string_iterator()]
    assert [element.value() for element in elements] == values


def test_items_of_a_list_of_texts() -> None:
    (override,) = OverridesParser.create().parse_overrides(as_typed(["logger.wandb.tags=[1e3, a=b,'c,d']"], Config))
    assert override.value() == ["1e3", "a=b", "c,d"]


def test_evaluation_has_texts_of_its_own() -> None:
    assert as_typed(["checkpoint=1e3"], EvalConfig) == ["checkpoint='1e3'"]


def test_train_and_its_sweeps_get_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def task(cfg: DictConfig) -> None:
        seen.append((cfg.name, cfg.data.root))

    monkeypatch.setattr(sys, "argv", sys.argv)
    cli.run(task, "train", ["experiment=digits_msa", "name=1e3", "data.root=a=b[é]"])
    cli.run(task, "train", ["experiment=digits_msa", "-m", "name=1e3,2024_11_27", "data.root=007"])
    assert seen == [("1e3", "a=b[é]"), ("1e3", "007"), ("2024_11_27", "007")]


def test_a_study_composes_the_same() -> None:
    assert compose_run(["experiment=digits_msa", "output_dir=runs/a=b"]).output_dir == "runs/a=b"


def test_a_text_where_the_schema_names_no_type_is_shown_as_it_must_be_typed(refused: Callable[..., str]) -> None:
    value = "crop=[é] it's"
    message = refused("train", "experiment=digits_msa", f"+model.kwargs.x={value}")
    (argument,) = shlex.split(message.partition(", type ")[2])
    assert compose_config("experiment=digits_msa", argument).model.kwargs["x"] == value
    assert "train.epochs must be a whole number" in refused("train", "experiment=digits_msa", "train.epochs==3")
    assert "write key=value" in refused("train", "experiment=digits_msa", "=3")
