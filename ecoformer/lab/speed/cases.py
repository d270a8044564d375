"""One line of a speed comparison: a model with an attention, ready to run one pass.

Shapes: B batch, N tokens, D model channels.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map_only

from ecoformer.engine.autocast import autocast
from ecoformer.errors import InputError
from ecoformer.fit.hashes import fit_new_hashes, hash_layers
from ecoformer.kinds import SPECS, make_spec
from ecoformer.lab.speed.throughput import PRECISIONS, Pass, forward_pass, training_step
from ecoformer.lab.subject import Subject
from ecoformer.model.create import has_fixed_size
from ecoformer.model.layers import attention_layers, require_input
from ecoformer.nn.inputs import example_input, takes_sequences
from ecoformer.nn.specs import AttentionSpec, split_setting
from ecoformer.ops.ecoformer import triton_kernels

FIT_SIZE = 224
SUFFIXES = ("unfused", "compiled", "torch", "graph")


@dataclass(frozen=True)
class Variant:
    """An attention as a comparison names it: stock or a registered kind, and how it is run.

    "msa_unfused" forms softmax(q k^T) as a matrix instead of calling torch's fused attention, "ecoformer_compiled"
    goes through torch.compile, "ecoformer_torch" leaves the Triton kernels out, "ecoformer_graph" replays the pass as
    one CUDA graph, without the host's time to launch its kernels (both CUDA only); suffixes can be chained. Settings of
    the kind may follow: "ecoformer_compiled:num_bits=8".
    """

    label: str
    kind: str
    spec: AttentionSpec | None
    suffixes: frozenset[str]

    @classmethod
    def parse(cls, label: str) -> Self:
        """Raises InputError for an attention that does not exist."""
        kind, options = split_setting(label)
        suffixes = set()
        while kind not in SPECS and (parts := kind.rpartition("_"))[2] in SUFFIXES:
            kind = parts[0]
            suffixes.add(parts[2])
        return cls(label, kind, make_spec(kind, options), frozenset(suffixes))

    def wrap(self, function: Any) -> Any:
        """`function`, compiled if the variant says so."""
        return torch.compile(function) if "compiled" in self.suffixes else function

    def context(self, run: Pass) -> Pass:
        """`run` with torch's attention unfused, and without the Triton kernels, as the variant says."""

        def run_in_context() -> object:
            unfused = sdpa_kernel(SDPBackend.MATH) if "unfused" in self.suffixes else nullcontext()
            on_torch = triton_kernels(False) if "torch" in self.suffixes else nullcontext()
            with on_torch, unfused:
                return run()

        return cuda_graph(run_in_context) if "graph" in self.suffixes else run_in_context


def cuda_graph(run: Pass) -> Pass:
    """`run` recorded once; the pass that is returned replays its kernels on the same memory."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what happens once (compilation, self-checks, work spaces) must not be recorded
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay(keep: Pass = run) -> None:  # the graph knows addresses alone: what `run` holds must live as long
        graph.replay()

    return replay


@dataclass(frozen=True)
class SpeedCase(Subject):
    """What is timed. `layer` 0 is the whole model, n its n-th attention layer alone, on what the model feeds it."""

    batch_size: int = 32
    mode: str = "eval"
    device: str = "cpu"
    precision: str = "fp32"
    channels_last: bool = False
    layer: int = 0
    seed: int = 0

    @property
    def kind(self) -> str:
        """The attention without suffixes, with its settings."""
        return self.attention if ":" in self.attention else Variant.parse(self.attention).kind

    def build(self) -> nn.Module:
        """The model on its device: a checkpoint's, or random weights of the seed, unfitted hash functions fitted to a
        random input.

        Raises InputError for unknown names, and for sizes that the model or its attention cannot take.
        """
        spec = Variant.parse(self.attention).spec
        if spec is not None and hasattr(spec, "fit_steps"):
            spec = replace(spec, fit_steps=1)  # type: ignore[call-arg]  # how well codes fit changes no speed
        if spec is not None and hasattr(spec, "clamp") and self.clamp:
            spec = replace(spec, clamp=True)  # type: ignore[call-arg]
        torch.manual_seed(self.seed)
        model = self.make(spec)
        require_input(model, self.img_size)
        if self.channels_last and takes_sequences(model):
            raise InputError(f"--channels-last is a layout of images, {self.model} takes sequences: leave it out")
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self._fit(model)
        return model

    def _fit(self, model: nn.Module) -> None:
        """Fit what is unfitted, at 224 px at most: such codes serve larger images too, and cost less to find."""
        size = min(self.img_size, FIT_SIZE)
        if size < self.img_size and has_fixed_size(self.model):
            fitted = hash_layers(replace(self, img_size=size).build())
            for name, layer in hash_layers(model).items():
                layer.load_state_dict(fitted[name].state_dict())
        fit_new_hashes(model, self._inputs(model, 1, size), self.seed)

    def step(self) -> Pass:
        """One pass over one batch, as a function without arguments. Raises InputError as `build` does."""
        variant = Variant.parse(self.attention)
        if (cuda_only := variant.suffixes & {"torch", "graph"}) and torch.device(self.device).type != "cuda":
            raise InputError(
                f"{self.attention}: _{min(cuda_only)} is for CUDA, the device is {self.device}: leave it out"
            )
        if "graph" in variant.suffixes and self.mode == "train":
            raise InputError(f"{self.attention}: a training step is not recorded as a graph: use --mode eval")
        model = self.build()
        inputs = self._inputs(model, self.batch_size, self.img_size)
        if self.layer:
            return variant.context(self._layer_step(variant, model, inputs))
        if self.mode == "train":
            classes: int = model.num_classes  # type: ignore[assignment]
            return variant.context(training_step(variant.wrap(model), inputs, classes, self.precision))
        model.eval()
        return variant.context(forward_pass(variant.wrap(model), inputs, self.precision))

    def _layer_step(self, variant: Variant, model: nn.Module, inputs: Tensor) -> Pass:
        layers = attention_layers(model)
        if self.layer > len(layers):
            raise InputError(f"layer {self.layer}: {self.model} has attention layers 1 to {len(layers)}")
        layer, calls = layers[self.layer - 1].module, []
        with layer.register_forward_pre_hook(lambda module, *call: calls.append(call), with_kwargs=True):
            forward_pass(model.eval(), inputs, self.precision)()
        # Copies can be trained on, what inference mode made cannot.
        (x_BND, *rest), named = tree_map_only(Tensor, Tensor.clone, calls[0])
        run: Callable[..., Tensor] = partial(variant.wrap(layer), **named)
        if self.mode == "eval":
            return forward_pass(lambda x: run(x, *rest), x_BND, self.precision)
        layer.train()
        x_BND.requires_grad_()

        def forward_backward() -> None:
            layer.zero_grad()
            with autocast(x_BND.device, PRECISIONS[self.precision]):
                out_BND = run(x_BND, *rest)
            out_BND.backward(torch.ones_like(out_BND))

        return forward_backward

    def _inputs(self, model: nn.Module, count: int, size: int) -> Tensor:
        inputs = example_input(model, size, count, seed=self.seed, device=self.device)
        return inputs.contiguous(memory_format=torch.channels_last) if self.channels_last else inputs
