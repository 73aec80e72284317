from __future__ import annotations

import math

import pytest
import torch
from golden_weights import fill_weights

from hess_plugin.models.track_head import (
    FEATURES,
    TrackBlock,
    Tracker,
    _correlation,
    _flow_embedding,
    _position_map,
    _pyramid,
    _sample,
)


@pytest.fixture(scope="module")
def tracker() -> Tracker:
    return fill_weights(Tracker()).eval()


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    return torch.randn(2, 3, FEATURES, 64, 70, generator=torch.Generator().manual_seed(0))


POINTS = torch.tensor([[[10.0, 20.0], [130.5, 90.25]], [[3.0, 4.0], [60.0, 127.0]]])


@torch.no_grad()
def test_shapes_and_ranges(tracker, features):
    track, visibility, confidence = tracker(features, POINTS, iterations=2)
    assert track.shape == (2, 3, 2, 2)
    assert visibility.shape == confidence.shape == (2, 3, 2)
    assert torch.equal(track[:, 0], POINTS)
    assert not torch.allclose(track[:, 1], POINTS, atol=1e-3)
    assert ((visibility > 0) & (visibility < 1) & (confidence > 0) & (confidence < 1)).all()


@torch.no_grad()
def test_scenes_do_not_mix(tracker, features):
    """One iteration, because rounding grows with each."""
    together = tracker(features, POINTS, iterations=1)
    alone = tracker(features[1:], POINTS[1:], iterations=1)
    for ours, expected in zip(alone, together, strict=True):
        torch.testing.assert_close(ours, expected[1:], atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_order_of_points_does_not_matter(tracker, features):
    straight = tracker(features, POINTS, iterations=1)[0]
    turned = tracker(features, POINTS.flip(1), iterations=1)[0]
    torch.testing.assert_close(turned.flip(2), straight, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_half_precision_weights():
    track, visibility, _ = Tracker().bfloat16()(torch.randn(1, 2, FEATURES, 64, 64), POINTS[:1], iterations=1)
    assert track.dtype == visibility.dtype == torch.float32
    assert track.isfinite().all()


def test_residual_starts_from_the_normalised_stream():
    """With attention and MLP silenced a block gives its normalised input, not the input."""
    block = TrackBlock()
    for part in (block.attn.out_proj, block.mlp.fc2):
        torch.nn.init.zeros_(part.weight)
        torch.nn.init.zeros_(part.bias)
    x = 5 + 3 * torch.randn(1, 4, 384)
    torch.testing.assert_close(block(x), block.norm1(x))


def test_sample_is_x_y():
    rows = torch.arange(12.0).view(1, 1, 3, 4)  # value 4·y + x
    at = torch.tensor([[[[3.0, 0.0], [1.5, 2.0], [0.0, 0.5], [9.0, 9.0]]]])
    torch.testing.assert_close(_sample(rows, at).flatten(), torch.tensor([3.0, 9.5, 2.0, 11.0]))


def test_correlation_has_x_slow():
    """A map whose first channel is 10·x + y, correlated with a point that has only that channel."""
    maps = torch.zeros(1, FEATURES, 64, 64)
    maps[0, 0] = 10 * torch.arange(64.0)[None, :] + torch.arange(64.0)[:, None]
    tracked = torch.zeros(1, 1, 1, FEATURES)
    tracked[..., 0] = FEATURES**0.5
    values = _correlation(_pyramid(maps), tracked, torch.tensor([[[[20.0, 30.0]]]])).flatten()
    assert values.shape == (7 * 81,)
    around = values[:81].view(9, 9)
    assert around[4, 4].item() == pytest.approx(230, abs=1e-3)
    assert (around[5, 4] - around[4, 4]).item() == pytest.approx(10, abs=1e-3)  # one step in x
    assert (around[4, 5] - around[4, 4]).item() == pytest.approx(1, abs=1e-3)  # one step in y
    coarse = values[81:162].view(9, 9)  # cell (10, 15) of the halved map: mean of x 20, 21 and y 30, 31
    assert coarse[4, 4].item() == pytest.approx(205 + 30.5, abs=1e-3)


def test_flow_embedding():
    embedded = _flow_embedding(torch.tensor([0.1, -2.0]))
    assert embedded.shape == (132,)
    assert embedded[2].item() == pytest.approx(math.sin(0.1 * 2 * 1000 / 64), abs=1e-5)
    assert embedded[3].item() == pytest.approx(math.cos(0.1 * 2 * 1000 / 64), abs=1e-5)
    assert embedded[64 + 2].item() == pytest.approx(math.sin(-2 * 2 * 1000 / 64), abs=1e-5)
    torch.testing.assert_close(embedded[-4:], torch.tensor([0.1, -2.0, 0.1, -2.0]) / 518)


def test_position_map():
    embedded = _position_map(388, (5, 9))[0]
    assert embedded.shape == (388, 5, 9)
    assert embedded[1, 3, 7].item() == pytest.approx(math.sin(7 * 10000 ** (-1 / 97)), abs=1e-6)
    assert embedded[97, 3, 7].item() == pytest.approx(math.cos(7), abs=1e-6)
    assert embedded[194, 3, 7].item() == pytest.approx(math.sin(3), abs=1e-6)
