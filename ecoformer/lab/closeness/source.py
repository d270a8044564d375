"""The trained model that closeness is measured to, its data, and the file that a distilled model is written to."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecoformer.config.schema import Config
from ecoformer.data import DataModule, build_data
from ecoformer.engine.distributed import device_of
from ecoformer.engine.evaluation import evaluate
from ecoformer.errors import InputError
from ecoformer.files import user_path
from ecoformer.model.chosen import layer_filter
from ecoformer.model.convert import FilterFn
from ecoformer.nn.base import given
from ecoformer.nn.inputs import size_of
from ecoformer.nn.specs import AttentionSpec
from ecoformer.run.directory import keep_out_of_splits
from ecoformer.run.parts import sequences_of
from ecoformer.run.saved import SavedRun, data_of, is_own, read_run, save_weights
from ecoformer.run.start import build_model, model_of_run


@dataclass
class Source:
    """A trained model with stock or MSA attention, the config that describes it, and its data."""

    config: Config
    model: nn.Module
    data: DataModule
    epoch: int

    @property
    def kind(self) -> str:
        """stock or msa."""
        return str(self.config.attention["name"])

    def held_out(self, num_images: int) -> Tensor:
        """Images of the validation split, the same ones every time."""
        return pick_images(self.data.val_loader, self.data.num_val, min(num_images, self.data.num_val), seed=0)

    def accuracy(self, model: nn.Module) -> float:
        """Top-1 in percent on the validation split."""
        return evaluate(model, self.data.val_loader, self.data.val_loader.device).top1

    def outcome(self, model: nn.Module) -> tuple[float, Tensor]:
        """Top-1 in percent on the validation split, and the log-probabilities of its classes, (images, classes)."""
        found: list[Tensor] = []

        def take(logits: Tensor, labels: Tensor) -> None:
            found.append(logits.log_softmax(dim=-1))

        loader = self.data.val_loader
        return evaluate(model, loader, loader.device, on_logits=take).top1, torch.cat(found)

    @cached_property
    def own_outcome(self) -> tuple[float, Tensor]:
        return self.outcome(self.model)

    def empty_model(self, attention: dict[str, Any]) -> nn.Module:
        """The model with another attention and no weights, on the meta device: for ledgers."""
        config = copy.deepcopy(self.config)
        config.attention = attention
        with torch.device("meta"):
            sequences = sequences_of(self.data)
            return build_model(config, self.data.num_classes, sequences=sequences, with_weights=False).model

    def layer_filter(self, layers: Sequence[int | str] | None) -> FilterFn | None:
        """The layers of `attention.layers`, as `convert` takes them."""
        return layer_filter(self.model, {"layers": None if layers is None else list(layers)})

    def save(
        self,
        path: Path,
        model: nn.Module,
        spec: AttentionSpec,
        layers: Sequence[int | str] | None,
        metrics: dict[str, Any],
    ) -> None:
        """Write a copy that was converted to `spec` as a weights checkpoint, for eval.py and for init.checkpoint."""
        attention = {"name": spec.name, **asdict(spec), "layers": None if layers is None else list(layers)}
        attention["rest"] = "msa" if layers is not None and self.kind == "msa" else None
        content = {"epoch": self.epoch, "metrics": metrics, "model": dict(model.state_dict())}
        config, names = replace(self.config, attention=attention), list(self.data.class_names)
        save_weights(path, SavedRun(path, content, config, names, sequences_of(self.data)))


def pick_images(loader: Iterable[tuple[Tensor, Tensor]], total: int, num_images: int, seed: int) -> Tensor:
    """`num_images` of the `total` images that a loader gives, spread over it by the seed alone, in its order.

    The first ones will not do: folders come class by class. Raises InputError if there are not enough.
    """
    if num_images > total:
        raise InputError(f"{num_images} held-out images asked for, but there are {total}: lower --images")
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:num_images].sort().values
    picked, start = [], 0
    for images, _ in loader:
        inside = chosen[(chosen >= start) & (chosen < start + len(images))] - start
        picked.append(images[inside.to(images.device)])
        start += len(images)
        if sum(map(len, picked)) == num_images:
            break
    return torch.cat(picked)


def load_source(
    *,
    checkpoint: Path | str | None,
    model: str | None = None,
    pretrained: bool = False,
    root: str | None = None,
    data_name: str | None = None,
    img_size: int | None = None,
    max_val: int | None = None,
    only_msa: bool = False,
    out: Path | None = None,
    device: str = "cpu",
) -> Source:
    """Find the model and its data.

    Args:
        model: timm's name; needed unless `checkpoint` is one of our runs.
        checkpoint: a run's best.pt or last.pt with stock or MSA attention, or a file of published weights.
        pretrained: timm's weights instead.
        root, data_name, img_size: data.root, data.name and data.img_size; None: those of the run, or an image folder at
            the size that timm's weights are for.
        max_val: only so many validation images.
        only_msa: a run with MSA attention and nothing else.
        out: where the command writes; refused within a split of the data.
        device: where the model and its data are, as `device_of` reads it.
    Raises:
        InputError: whatever the user can mend.
    """
    place = device_of(device, "--device ")
    if pretrained == (checkpoint is not None):
        raise InputError("name the weights to start from: either --checkpoint FILE or --pretrained")
    run = None
    if checkpoint is not None and (only_msa or is_own(user_path(checkpoint))):
        run = read_run(checkpoint)
    config = Config() if run is None else run.config
    if run is not None:
        kind = config.attention["name"]
        if kind != "msa" and (only_msa or kind != "stock"):
            wanted = "of an attention=msa run" if only_msa else "with stock or MSA attention"
            raise InputError(f"--checkpoint {checkpoint} has {kind} attention: give one {wanted}")
        if model not in (None, config.model.name):
            raise InputError(f"--checkpoint {checkpoint} holds {config.model.name}, not {model}: leave --model out")
    elif model is None:
        raise InputError("--model is needed with --pretrained and with published weights")
    else:
        config.model.name = model
        config.data.name = "folder"
        config.data.img_size = size_of(model)
        config.init.pretrained = pretrained
        config.init.checkpoint = None if checkpoint is None else str(checkpoint)
    asked = given(name=data_name, root=root, img_size=img_size, max_val_samples=max_val)
    config.data = replace(config.data, **asked) if run is None else data_of(run, asked)
    if out is not None:
        keep_out_of_splits(out, config.data.root, f"--out {out}")
    train = replace(config.train, progress=False)
    options: dict[str, Any] = {"calibration_only": True, "in_chans": config.model.in_chans}
    data = build_data(config.data, config.augment, train, seed=0, device=place, **options)
    if run is None:
        model_of_config = build_model(config, data.num_classes, sequences=sequences_of(data)).model
        return Source(config, model_of_config.to(place).eval(), data, 0)
    if run.class_names != list(data.class_names):
        raise InputError(
            f"--checkpoint {checkpoint} was trained on other classes than those of --data {config.data.root}: "
            "give the data that it was trained on"
        )
    return Source(config, model_of_run(run).to(place).eval(), data, run.content["epoch"])
