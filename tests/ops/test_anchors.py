"""Anchors from one image, from the batch, and from k-means over it."""

from __future__ import annotations

import pytest
import torch

from ecoformer.ops.ecoformer.anchors import draw_anchors, kmeans


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.fixture
def x_BHNC() -> torch.Tensor:
    return torch.randn(5, 2, 11, 3, generator=torch.Generator().manual_seed(0))


def positions(x_HTC: torch.Tensor, anchors_HMC: torch.Tensor) -> list[list[int]]:
    return [[int((x == a).all(-1).nonzero()) for a in anchors] for x, anchors in zip(x_HTC, anchors_HMC, strict=True)]


def test_an_image_gives_its_own_tokens(x_BHNC: torch.Tensor) -> None:
    first, second = positions(x_BHNC[0], draw_anchors(x_BHNC, 6, "image", seeded()))
    assert first == second and len(set(first)) == 6


def test_a_batch_gives_tokens_of_all_images(x_BHNC: torch.Tensor) -> None:
    first, second = positions(x_BHNC.transpose(0, 1).flatten(1, 2), draw_anchors(x_BHNC, 20, "batch", seeded()))
    assert first == second and len(set(first)) == 20 and max(first) >= 11  # more than one image has


def test_kmeans_repeats_and_lies_closer_to_the_tokens(x_BHNC: torch.Tensor) -> None:
    batch, found, again = (draw_anchors(x_BHNC, 8, how, seeded()) for how in ("batch", "kmeans", "kmeans"))
    assert torch.equal(found, again)
    tokens = x_BHNC.transpose(0, 1).flatten(1, 2)
    distances = [torch.cdist(tokens, anchors).amin(dim=-1).square().mean() for anchors in (found, batch)]
    assert distances[0] < 0.7 * distances[1]


def test_kmeans_equals_the_loop_over_tokens() -> None:
    x_HTC, centres_HMC = torch.randn(2, 30, 4, generator=seeded()), torch.randn(2, 5, 4)
    centres_HMC[:, 4] = 100  # no token is near
    expected = centres_HMC.clone()
    for head in range(2):
        nearest = torch.cdist(x_HTC[head], centres_HMC[head]).argmin(dim=1)
        for centre in range(4):
            if (nearest == centre).any():
                expected[head, centre] = x_HTC[head, nearest == centre].mean(dim=0)
    torch.testing.assert_close(kmeans(x_HTC, centres_HMC, 1), expected)


@pytest.mark.parametrize("how", ["image", "batch", "kmeans"])
def test_equal_tokens_and_as_many_anchors_as_tokens(how: str) -> None:
    assert torch.equal(draw_anchors(torch.ones(1, 2, 6, 3), 6, how, seeded()), torch.ones(2, 6, 3))
