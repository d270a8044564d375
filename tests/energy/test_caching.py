"""What models keep in dicts and lists of their own: it changes no count, and no count changes it."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ecoformer.energy import count


class Cached(nn.Module):
    """Keeps by the number of tokens what it needs of them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.cache, self.seen = nn.Linear(4, 4), {}, []
        self.used = OrderedDict(rows=0, passes=1)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.shape)
        self.used.move_to_end("rows")
        if x.shape[1] not in self.cache:
            self.cache[x.shape[1]] = torch.arange(x.shape[1], device=x.device).float()[:, None].cos()
        return self.linear(x * self.cache[x.shape[1]])


def test_a_model_that_caches_is_as_before_and_counted_the_same_again() -> None:
    model, x = Cached().eval(), torch.randn(2, 5, 4)
    first = count(model, x)
    assert model.cache == {} and model.seen == [] and list(model.used) == ["rows", "passes"]
    assert model(x).shape == x.shape  # which fills the cache
    assert count(model, x).counts == count(model, x, dtype=torch.float32).counts == first.counts
    assert list(model.cache) == [5] and not model.cache[5].is_meta and len(model.seen) == 1


class Constants(nn.Module):
    """Tensors in a dict that it only reads, and a list that a hook of its own fills."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scales, self.order = nn.Linear(4, 4), {"a": torch.tensor(2.0)}, {"i": torch.tensor([1, 0])}
        self.features: list[Tensor] = []
        seen = self.features
        self.linear.register_forward_hook(lambda module, inputs, out: seen.append(out))

    def forward(self, x: Tensor) -> Tensor:
        self.linear(x * self.scales["a"])
        return self.features[-1][:, self.order["i"]]


def test_a_model_with_constants_in_a_dict_and_a_list_shared_with_a_hook() -> None:
    model = Constants().eval()
    assert count(model, torch.randn(2, 2, 4)).counts["fma"] == 2 * 2 * 16
    assert model.features == [] and list(model.scales) == ["a"]
