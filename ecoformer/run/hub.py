"""A finished model as a folder that timm and the Hugging Face hub read: weights, config.json, model card."""

from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

from ecoformer.errors import InputError, counted, first_line
from ecoformer.files import atomic_write, write_json, write_text
from ecoformer.model.chosen import layer_filter
from ecoformer.model.layers import attention_layers
from ecoformer.model.low_rank import low_rank_layers
from ecoformer.models.converted import ARCHITECTURE
from ecoformer.nn.inputs import RGB, example_input, input_size
from ecoformer.run.saved import crop_of, statistics_of
from ecoformer.run.start import SavedRun, model_of_run
from ecoformer.run.summary import run_energy

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
TOLERANCE = 0.0  # the same weights in the same modules: nothing may differ


def export_folder(run: SavedRun, folder: Path, name: str) -> float:
    """Write weights, config.json and model card to a new or empty folder, load them back through timm, and compare.

    Returns the largest difference between its logits and the checkpoint's.
    Raises InputError: the folder is in use or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"--out {folder} already exists and is not an empty folder: choose another one")
    model = model_of_run(run).eval()
    tensors = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    config, figures = timm_config(run, model), _figures(run, model)  # what is refused is so before anything is written
    with atomic_write(folder / WEIGHTS) as file:
        file.write(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG, config)
    write_text(folder / CARD, model_card(run, name, figures))
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    inputs = example_input(model, input_size(model, run.config.data.img_size), 2)
    with torch.no_grad():
        return float((again(inputs) - model(inputs)).abs().max())


def timm_config(run: SavedRun, model: nn.Module) -> dict[str, Any]:
    """The config.json that `timm.create_model("local-dir:...")` reads."""
    config = run.config
    args: dict[str, Any] = {
        "backbone": config.model.name,
        "attention": {key: value for key, value in config.attention.items() if key not in ("layers", "rest")},
        **(run.sequences or {"img_size": config.data.img_size}),
        **config.model.kwargs,
    }
    if config.model.in_chans != RGB:
        args["in_chans"] = config.model.in_chans
    if config.model.patch_stride is not None:
        args["patch_stride"] = config.model.patch_stride
    if ranks := {name: layer.rank for name, layer in low_rank_layers(model).items()}:
        args["ranks"] = ranks
    if (chosen := layer_filter(model, config.attention)) is not None:
        args["layers"] = [layer.name for layer in attention_layers(model) if chosen(layer.module, layer.name)]
        args["rest"] = config.attention.get("rest")
    return {
        "architecture": ARCHITECTURE,
        "num_classes": len(run.class_names),
        "num_features": model.num_features,
        "label_names": list(run.class_names),
        "model_args": args,
        "pretrained_cfg": _pretrained_cfg(run),
    }


def _pretrained_cfg(run: SavedRun) -> dict[str, Any]:
    data, stock = run.config.data, timm.get_pretrained_cfg(run.config.model.name)
    cfg = {
        "num_classes": len(run.class_names),
        "first_conv": stock.first_conv if stock is not None else None,
        "classifier": stock.classifier if stock is not None else "head",
        "license": "apache-2.0",
    }
    if run.sequences:
        return {"input_size": [run.sequences["seq_len"]], **cfg}
    mean, std = statistics_of(run)
    return {
        "input_size": [len(mean), data.img_size, data.img_size],
        "fixed_input_size": bool(stock is not None and stock.fixed_input_size),
        "interpolation": data.interpolation,
        "crop_pct": crop_of(run),
        "mean": list(mean),
        "std": list(std),
        **cfg,
    }


def _figures(run: SavedRun, model: nn.Module) -> dict[str, Any]:
    within_epoch = (run.content.get("training") or {}).get("position") is not None  # its figures are of the one before
    return {
        "top1": None if within_epoch else (run.content.get("metrics") or {}).get("val_top1"),
        "epochs": run.content["epoch"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "energy_pj": run_energy(run.config, model)["energy_pj"],
    }


def model_card(run: SavedRun, name: str, figures: dict[str, Any]) -> str:
    """README.md with the hub's front matter: what the model is, how it was measured, how to load it."""
    config = run.config
    kind = config.attention["name"]
    options = ", ".join(f"{key} {value}" for key, value in config.attention.items() if key != "name")
    one, task, seen = "an image", "image-classification", f"images of {config.data.name}, {config.data.img_size} px"
    if run.sequences:
        tokens = run.sequences["seq_len"]
        one, task, seen = "a sequence", "text-classification", f"sequences of {config.data.name}, {tokens} tokens"
    accuracy = (
        f"{figures['top1']:.2f} % top-1 on the validation {seen}, after {counted(figures['epochs'], 'epoch')}"
        if figures["top1"] is not None
        else "not recorded in the checkpoint"
    )
    joules = figures["energy_pj"] * 1e-9
    return f"""---
library_name: timm
pipeline_tag: {task}
license: apache-2.0
tags:
- {task}
- timm
- ecoformer
---
# {name}

{config.model.name} with {kind} attention{f" ({options})" if options else ""}, written by the ecoformer package.

- Accuracy: {accuracy}.
- Parameters: {figures["parameters"]:,}.
- Modelled energy: {joules:.4g} mJ {one} ({config.energy.convention} convention, {config.energy.profile}),
  counted, not measured.
- Classes: {len(run.class_names)}, named in `{CONFIG}`.

```python
import timm
import ecoformer.models  # registers the architecture

model = timm.create_model("hf-hub:USER/NAME", pretrained=True)  # or "local-dir:FOLDER"
```

EcoFormer: J. Liu, Z. Pan, H. He, J. Cai, B. Zhuang. *EcoFormer: Energy-Saving Attention with Linear Complexity.*
NeurIPS 2022.
"""


def push_folder(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a folder to the hub and return its address. Raises InputError if that cannot be done now."""
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message="Model and card"))
    except Exception as error:  # the client and its transport raise many kinds: offline, no token, no permission
        raise InputError(
            f"cannot push to {repo} ({first_line(error)}): {folder} is complete; log in with `hf auth login` and push "
            f"it later with `hf upload {repo} {folder}`"
        ) from error
