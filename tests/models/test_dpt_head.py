from __future__ import annotations

import math

import pytest
import torch
from golden_weights import fill_weights
from torch import nn

from hess_plugin.models import dpt_head
from hess_plugin.models.dpt_head import (
    DptFeatures,
    DptHead,
    FeatureFusion,
    ResidualConvUnit,
    ResizeByProducts,
    inverse_log,
    position_map,
    resize,
)
from hess_plugin.models.layers import in_chunks


def head(output_dim: int = 3) -> DptHead:
    return fill_weights(DptHead(32, 16, (8, 8, 16, 16), output_dim, activation=inverse_log))


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (5, 2)])
@pytest.mark.parametrize("patch", [8, 14])
def test_shapes(grid, patch):
    size = (patch * grid[0], patch * grid[1])
    prediction, confidence = head()([torch.randn(2, grid[0] * grid[1], 32)] * 4, grid, size)
    assert prediction.shape == (2, *size, 3)
    assert confidence.shape == (2, *size)
    assert (confidence > 1).all()


def test_each_stage_has_its_own_layer():
    tokens = [torch.randn(1, 6, 32) for _ in range(4)]
    base, _ = head()(tokens, (2, 3), (16, 24))
    for stage in range(4):
        changed = [t.flip(1) if i == stage else t for i, t in enumerate(tokens)]
        assert not torch.allclose(head()(changed, (2, 3), (16, 24))[0], base, atol=1e-4)


def test_features_without_head():
    extractor = DptFeatures(32, 16, (8, 8, 16, 16), 16)
    assert not any("output_conv2" in key for key in extractor.state_dict())
    assert extractor([torch.randn(2, 6, 32)] * 4, (2, 3), (14, 21)).shape == (2, 16, 14, 21)


def test_residual_unit_skips_relu_of_its_input():
    unit = ResidualConvUnit(1)
    for parameter in unit.parameters():
        nn.init.zeros_(parameter)
    x = torch.tensor([[[[-2.0, 3.0]]]])
    assert unit(x).tolist() == [[[[0.0, 3.0]]]]
    assert x.tolist() == [[[[-2.0, 3.0]]]]  # the input itself stays


def test_coarsest_fusion_has_no_first_unit():
    assert not any("resConfUnit1" in key for key in FeatureFusion(4, coarsest=True).state_dict())


def test_resize_keeps_corners():
    ramp = torch.tensor([[[[0.0, 1.0]]]])
    assert resize(ramp, (1, 5)).flatten().tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_resize_in_parts(monkeypatch):
    x = torch.randn(5, 3, 4, 4)
    whole = resize(x, (7, 9))
    monkeypatch.setattr(dpt_head, "MAX_RESIZE_ELEMENTS", 2 * 3 * 7 * 9)
    assert torch.equal(resize(x, (7, 9)), whole)


def test_position_map_of_a_square():
    """2 x 2 cells of a square: coordinates ±(1/√2)/2; one frequency of 1 with four channels."""
    edge = 1 / math.sqrt(2) / 2
    x_sin, x_cos, y_sin, y_cos = position_map(4, (2, 2), 1.0, torch.device("cpu"))
    expected = torch.tensor([[-edge, edge], [-edge, edge]]).sin()
    torch.testing.assert_close(x_sin, expected)
    torch.testing.assert_close(y_sin, expected.T)
    torch.testing.assert_close(x_cos, torch.full((2, 2), math.cos(edge)))
    torch.testing.assert_close(y_cos, x_cos)


def test_position_map_of_a_wide_image():
    """Aspect 3: x spans three times as far as y; the second frequency of eight channels is 1/10."""
    wide = position_map(8, (4, 12), 3.0, torch.device("cpu"))
    x_reach, y_reach = wide[0].asin().max().item(), wide[4].asin().max().item()
    assert x_reach == pytest.approx(3 / math.sqrt(10) * 11 / 12, rel=1e-5)
    assert y_reach == pytest.approx(1 / math.sqrt(10) * 3 / 4, rel=1e-5)
    assert wide[1].asin().max().item() == pytest.approx(x_reach / 10, rel=1e-4)


def test_inverse_log():
    given = torch.tensor([0.0, math.log(2), -math.log(3)])
    torch.testing.assert_close(inverse_log(given), torch.tensor([0.0, 1.0, -2.0]))


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 100])
def test_chunks_change_nothing(chunk_size):
    model, tokens = head(), [torch.randn(5, 6, 32) for _ in range(4)]
    whole = model(tokens, (2, 3), (16, 24))
    for part, expected in zip(in_chunks(model, tokens, chunk_size, (2, 3), (16, 24)), whole, strict=True):
        torch.testing.assert_close(part, expected)


def test_half_precision_weights_give_float32_maps():
    tokens = [torch.randn(1, 6, 32) for _ in range(4)]
    prediction, confidence = head().bfloat16()(tokens, (2, 3), (16, 24))
    assert prediction.dtype == confidence.dtype == torch.float32
    assert prediction.isfinite().all()


@pytest.mark.parametrize(("source", "target"), [((3, 5), (7, 11)), ((6, 4), (3, 1)), ((1, 2), (4, 8))])
def test_reproducible_gradient_of_resize(source, target):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *source, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(2, 3, *target, dtype=torch.float64, generator=generator)
    expected, found = resize(x, target), ResizeByProducts.apply(x, target)
    assert torch.equal(found, expected)
    gradients = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected))
    torch.testing.assert_close(*gradients)
