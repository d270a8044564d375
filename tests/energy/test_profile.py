"""Profiles: published figures, composed and assumed prices, and one clear line for a malformed file."""

import re
from pathlib import Path

import pytest
import timm
import torch
import yaml
from torch import nn

from ecoformer.energy import count, load_profile, profile_names
from ecoformer.energy.kinds import ARITHMETIC
from ecoformer.energy.profile_files import PROFILE_FOLDER
from ecoformer.errors import InputError

# Horowitz, ISSCC 2014: pJ of a multiplication and an addition; areas as in Dally's tutorial
PUBLISHED = {
    "45nm_fp32": (3.7, 0.9, 7700, 4184),
    "45nm_fp16": (1.1, 0.4, 1640, 1360),
    "45nm_int8": (0.2, 0.03, 282, 36),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name: str) -> None:
    profile = load_profile(name)
    prices = profile.precisions[profile.default].prices
    mul, add = prices["mul"], prices["add"]
    assert (mul.pj, add.pj, mul.um2, add.um2) == PUBLISHED[name]
    assert not mul.assumed and "Horowitz" in mul.origin
    assert prices["fma"].pj == pytest.approx(mul.pj + add.pj)
    assert prices["div"].pj == pytest.approx(7 * mul.pj + 6 * add.pj)


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_price_has_an_origin(name: str) -> None:
    profile = load_profile(name)
    for precision in profile.precisions.values():
        for kind in ARITHMETIC:
            price = precision.prices[kind]
            assert len(price.origin) > 20
            assert price.pj > 0 and price.um2
            # Horowitz prices multiplications and additions; whatever else we charge is our assumption.
            assert price.assumed == (kind not in ("mul", "add"))


def test_memory_is_priced_by_the_byte_and_scales_with_precision() -> None:
    ledger = count(nn.Linear(7, 4), torch.zeros(3, 7))
    moved = ledger.counts["read_bytes"] + ledger.counts["written_bytes"]
    for memory, per_byte in (("sram", 12.5), ("dram", 162.5)):
        for precision, share in (("fp32", 1.0), ("fp16", 0.5)):
            with_memory = ledger.energy_pj(load_profile(f"45nm_{precision}_{memory}"))
            without = ledger.energy_pj(load_profile(f"45nm_{precision}"))
            assert with_memory - without == pytest.approx(moved * per_byte * share)


def test_paper_convention_refuses_memory_prices() -> None:
    ledger = count(nn.Linear(7, 4), torch.zeros(3, 7), convention="paper")
    with pytest.raises(InputError, match="45nm_fp32_dram prices memory, which convention=paper does not count"):
        ledger.energy_pj(load_profile("45nm_fp32_dram"))


def valid() -> dict:
    """The smallest profile: 32 bits, everything but mul and add is as many additions."""
    one = {"pj": 1.0, "source": "book"}
    composed = {kind: {"as": {"add": 2}, "assumption": "guess"} for kind in ARITHMETIC if kind not in ("mul", "add")}
    return {
        "summary": "A test",
        "precision": "wide",
        "sources": {"book": "A book"},
        "assumptions": {"guess": "A guess"},
        "precisions": {"wide": {"bits": 32, "mul": {**one, "pj": 5.0}, "add": one, **composed}},
    }


def write(folder: Path, data: object, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def test_a_dropped_file_is_a_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, valid())
    ledger = count(nn.Linear(7, 4), torch.zeros(3, 7))
    expected = 3 * 7 * 4 * 2.0 + 12 * 1.0
    assert load_profile(path).energy_pj(ledger.entries) == expected
    monkeypatch.setenv("ECOFORMER_PROFILES", str(tmp_path))
    assert load_profile("mine").energy_pj(ledger.entries) == expected
    assert "mine" in profile_names() and "45nm_fp32" in profile_names()


def test_area_without_a_figure_is_none_and_not_zero(tmp_path: Path) -> None:
    ledger = count(nn.Linear(7, 4), torch.zeros(3, 7))
    assert load_profile(write(tmp_path, valid())).area_um2(ledger.entries) is None
    assert load_profile("45nm_fp32").area_um2(ledger.entries) == 84 * (7700 + 4184) + 12 * 4184


def test_precision_per_module(tmp_path: Path) -> None:
    data = valid()
    narrow = {**data["precisions"]["wide"], "bits": 8, "mul": {"pj": 0.5, "source": "book"}}
    data["precisions"]["narrow"] = narrow
    data["rules"] = [{"modules": "1", "precision": "narrow"}, {"modules": "*", "precision": "wide", "kinds": ["exp"]}]
    profile = load_profile(write(tmp_path, data))
    ledger = count(nn.Sequential(*[Square() for _ in range(3)]), torch.zeros(10))
    assert profile.energy_pj(ledger.entries) == 10 * (5.0 + 0.5 + 5.0)


def test_mixed_profile_prices_norms_apart() -> None:
    mixed = load_profile("45nm_mixed")
    ledger = count(timm.create_model("pvt_v2_b0"), 64)
    found = {(entry.module_class, mixed.precision_of(entry.module, "mul").name) for entry in ledger.entries}
    assert {("LayerNorm", "fp32"), ("Linear", "fp16"), ("Conv2d", "fp16")} <= found


def test_bytes_of_integers_keep_their_width() -> None:
    class ToFloat(nn.Module):
        def forward(self, codes: torch.Tensor) -> torch.Tensor:
            return codes.float()

    ledger = count(ToFloat(), torch.zeros(1000, dtype=torch.int8))
    assert ledger.counts == {"read_bytes": 1000, "written_bytes": 4000}
    wide, narrow = (ledger.energy_pj(f"45nm_{name}_dram") for name in ("fp32", "fp16"))
    assert narrow == pytest.approx(wide * (1000 + 4000 / 2) / (1000 + 4000))


class Square(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square()


def without(key: str) -> dict:
    data = valid()
    del data[key]
    return data


def with_mul(figure: object) -> dict:
    data = valid()
    data["precisions"]["wide"]["mul"] = figure
    return data


MALFORMED = {
    "no YAML": ("precision: [", "is no valid YAML"),
    "a list": ("- 1", "the file must be a mapping of names, got list"),
    "empty": ("", "the file must be a mapping of names, got NoneType"),
    "a key missing": (without("precisions"), "key 'precisions' is missing"),
    "a key too many": ({**valid(), "precison": 1}, "unknown key 'precison'"),
    "default unknown": ({**valid(), "precision": "fp8"}, "precision 'fp8' is not among precisions: wide"),
    "text for a number": (with_mul({"pj": "3.7pJ", "source": "book"}), "wide.mul.pj must be a number .* got '3.7pJ'"),
    "negative": (with_mul({"pj": -1, "source": "book"}), "wide.mul.pj must be a number of at least 0, got -1"),
    "not a number": (with_mul({"pj": float("nan"), "source": "book"}), "wide.mul.pj must be a number"),
    "no origin": (with_mul({"pj": 1}), "wide.mul needs either a source or an assumption"),
    "origin unknown": (with_mul({"pj": 1, "source": "rumour"}), "source 'rumour' is not among sources"),
    "assumption sold as source": (with_mul({"pj": 1, "source": "guess"}), "source 'guess' is not among sources"),
    "no figure": (with_mul({"source": "book"}), "wide.mul needs pj, or as"),
    "two figures": (with_mul({"pj": 1, "as": {"add": 1}, "source": "book"}), "both as and a figure"),
    "composed of nothing known": (with_mul({"as": {"fma": 1}, "assumption": "guess"}), "as names 'fma'"),
    "bits": ({**valid(), "precisions": {"wide": {"bits": 0}}}, "bits must be a whole number of at least 1, got 0"),
    "kinds missing": (
        {**valid(), "precisions": {"wide": {"bits": 8}}},
        "needs at least the price of an add, and of a mac or a mul",
    ),
    "rule": ({**valid(), "rules": [{"modules": "*", "precision": "x"}]}, r"rules\[0\].precision 'x' is not among"),
    "rule kinds": (
        {**valid(), "rules": [{"modules": "*", "precision": "wide", "kinds": ["mull"]}]},
        r"rules\[0\].kinds must list some of",
    ),
}


@pytest.mark.parametrize(("data", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_file_gives_one_line(tmp_path: Path, data: object, message: str) -> None:
    path = write(tmp_path, data)
    with pytest.raises(InputError, match=message) as caught:
        load_profile(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(InputError, match=r"choose one of 45nm_fp16, .*45nm_fp32"):
        load_profile("7nm")
    with pytest.raises(InputError, match=r"profile file nowhere/x\.yaml does not exist"):
        load_profile("nowhere/x.yaml")


def test_profiles_ship_with_the_package() -> None:
    assert {path.stem for path in PROFILE_FOLDER.glob("*.yaml")} <= set(profile_names())


def test_a_mac_and_an_add_are_enough(tmp_path: Path) -> None:
    text = """
sources: {datasheet: A datasheet}
precisions:
  int8:
    bits: 8
    mac: {pj: 0.23, source: datasheet}
    add: {pj: 3e-2, source: datasheet}
"""
    profile = load_profile(write(tmp_path, text))
    prices = profile.precisions["int8"].prices
    assert (prices["fma"].pj, prices["mul"].pj, prices["add"].pj, prices["compare"].pj) == (0.23, 0.23, 0.03, 0.03)
    assert prices["div"].pj == pytest.approx(7 * 0.23 + 6 * 0.03) and prices["div"].assumed
    assert profile.default == "int8" and profile.summary == "mine.yaml"
    assert count(nn.Linear(7, 4, bias=False), torch.zeros(3, 7)).energy_pj(profile) == pytest.approx(84 * 0.23)


def test_a_profile_begins_with_another(tmp_path: Path) -> None:
    text = "base: 45nm_fp32\nsources: {ours: Measured}\nprecisions: {fp32: {mul: {pj: 2.0, source: ours}}}\n"
    prices, base = (load_profile(which).precisions["fp32"].prices for which in (write(tmp_path, text), "45nm_fp32"))
    assert prices["mul"].pj == 2.0 and prices["mul"].um2 is None and prices["mul"].origin == "Measured"
    assert prices["add"] == base["add"] and prices["fma"].pj == 2.0 + base["add"].pj  # composed anew
    write(tmp_path, "base: mine.yaml\nsummary: Mine, cheaper\n", "second.yaml")
    assert load_profile(tmp_path / "second.yaml").precisions["fp32"].prices == prices
    with pytest.raises(InputError, match="is the file itself: name another profile"):
        load_profile(write(tmp_path, "base: loop.yaml\n", "loop.yaml"))


def test_two_prices_are_a_profile(tmp_path: Path) -> None:
    path = write(tmp_path, "mac: 0.23\nadd: 3e-2\nbits: 8\n")
    ledger = count(nn.Linear(7, 4), torch.zeros(3, 7))
    for given in ({"mac": 0.23, "add": 0.03, "bits": 8}, "mac=0.23,add=3e-2,bits=8", path, load_profile(path)):
        assert ledger.energy_pj(given) == pytest.approx(84 * 0.23 + 12 * 0.03)
        prices = load_profile(given).precisions["given"]
        assert prices.bits == 8 and all(price.assumed for kind, price in prices.prices.items() if price.pj)
    for given in ("mac=0.23,add=0.03", {"mac": 0.23, "add": 0.03}):
        assert "mac=0.23,add=0.03: 19.68 pJ" in ledger.table(profile=given)
    with pytest.raises(InputError, match=r"profile mac=0\.2: precisions\.given needs at least the price of an add"):
        load_profile("mac=0.2")
    with pytest.raises(InputError, match=r"given\.fma\.pj must be a number of at least 0, got 'cheap'"):
        load_profile({"mac": "cheap", "add": 1})
    with pytest.raises(InputError, match="has unknown key 'nac'"):
        load_profile("nac=0.2,add=1")
    with pytest.raises(InputError, match="given has mac and fma, which are the same"):
        load_profile("mac=0.2,fma=0.2,add=1")


def test_prices_change_those_of_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, base = (load_profile(which).precisions["fp16"] for which in ("base=45nm_fp16,mac=0.5", "45nm_fp16"))
    assert changed.prices["fma"].pj == 0.5 and changed.bits == 16
    assert changed.prices["mul"] == base.prices["mul"]
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "base: second.yaml\n", "first.yaml")
    write(tmp_path, "base: first.yaml\n", "second.yaml")
    with pytest.raises(InputError, match=r"base: first\.yaml is a file that begins with this one"):
        load_profile("first.yaml")
    write(tmp_path, "- 1", "first.yaml")
    with pytest.raises(InputError, match=r"profile first\.yaml, the base of prices, has no precisions"):
        load_profile({"base": "first.yaml", "mac": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mac: 1\nadd: 2\nadd: 3\n", "key 'add' is given twice$"),
        ("precisions: {a: {}, a: {}}\n", "key 'a' is given twice$"),
        (f"mac: {'9' * 400}\nadd: 1\n", "must be a number of at least 0"),
        (f"mac: {'9' * 5000}\nadd: 1\n", "no valid YAML: Exceeds the limit"),
    ],
    ids=["price", "precision", "long", "longer"],
)
def test_files_that_say_too_much_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_profile(write(tmp_path, text, "odd.yaml"))


def test_bare_prices_that_are_no_yaml_and_a_folder_are_one_line(tmp_path: Path) -> None:
    for given in ("mac=[,add=1", "mac=!!x 1,add=1", "mac=1,add=2,mac=3"):
        with pytest.raises(InputError, match=f"^profile {re.escape(given)} is no valid YAML"):
            load_profile(given)
    with pytest.raises(InputError, match=r"is a folder$"):
        load_profile(tmp_path)
    assert load_profile("mac=1, add=2,").precisions["given"].prices["add"].pj == 2


def test_the_example_of_the_docs_is_a_profile(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "energy.md").read_text()
    for number, example in enumerate(re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)):
        assert load_profile(write(tmp_path, example, f"{number}.yaml")).precisions
    assert number >= 1
