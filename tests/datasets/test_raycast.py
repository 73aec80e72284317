"""Hand-worked rays and shades of single objects."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hess_plugin.datasets.raycast import ROOM_SIDES, Cameras, Shapes, Texture, cast_rays, shade


def one_object(is_box: bool, half: tuple[float, float, float], has_room: bool = False) -> Shapes:
    """An object at the origin, and a room of half extents 20."""
    halves = torch.tensor([half, (20.0, 20.0, 20.0)])
    to_unit = torch.diag_embed(1 / halves)[None]
    return Shapes(torch.zeros(1, 2, 3), to_unit, 0 if is_box else 1, torch.tensor([has_room]))


def look(position: tuple[float, float, float], slope: tuple[float, float], axes: Tensor) -> Cameras:
    """One ray: rows of `axes` are where the camera's x, y and z point."""
    x, y = (torch.full((1, 1, 1, 1), value) for value in slope)
    return Cameras(torch.tensor([[position]]), axes.T[None, None], x, y)


ALONG_Z = torch.eye(3)
DOWN = torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, -1]])


class TestRays:
    @pytest.mark.parametrize(
        ("is_box", "half", "position", "slope", "depth"),
        [
            (False, (2, 2, 2), (0, 0, -6), (0, 0), 4),  # a sphere head on
            (False, (1, 2, 3), (0, 0, -6), (0, 0), 3),  # an ellipsoid's own axis
            # (1 + s²) t² - 2·6 t + 36 - 4 = 0 with s = 0.25: the smaller root
            (False, (2, 2, 2), (0, 0, -6), (0.25, 0), (12 - math.sqrt(144 - 4 * 1.0625 * 32)) / (2 * 1.0625)),
            (False, (2, 2, 2), (3, 0, -6), (0, 0), math.inf),  # passes by
            (False, (2, 2, 2), (0, 0, 6), (0, 0), math.inf),  # lies behind
            (True, (1, 2, 3), (0, 0, -6), (0, 0), 3),
            (True, (1, 2, 3), (-3, 0, -6), (0.5, 0), 4),  # meets the side x = -1 at z = -2
            (True, (1, 2, 3), (0, 2.1, -6), (0, 0), math.inf),
        ],
    )
    def test_one_object(self, is_box, half, position, slope, depth) -> None:
        found, surface = cast_rays(one_object(is_box, half), look(position, slope, ALONG_Z))
        assert found.item() == pytest.approx(depth, rel=1e-6)
        assert math.isinf(depth) or surface.item() == 0

    def test_rotated_box(self) -> None:
        shapes = one_object(True, (1, 1, 1))
        angle = torch.tensor(math.pi / 4)
        turn = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
        to_unit = torch.stack([turn, torch.eye(3)])[None]
        found, _ = cast_rays(shapes._replace(to_unit=to_unit), look((0, 0, -6), (0, 0), ALONG_Z))
        assert found.item() == pytest.approx(6 - math.sqrt(2), rel=1e-6)  # its edge is nearest

    def test_room(self) -> None:
        in_room = one_object(False, (1, 1, 1), has_room=True)
        for position, surface, depth in (((6, 0, 2), 1, 22), ((0, 0, 2), 0, 1), ((0, 0, -2), 1, 18)):
            found, number = cast_rays(in_room, look(position, (0, 0), DOWN))
            assert (number.item(), found.item()) == (surface, pytest.approx(depth, rel=1e-6))
        outside = one_object(False, (1, 1, 1), has_room=False)
        assert cast_rays(outside, look((6, 0, 2), (0, 0), DOWN))[0].isinf().all()


def plain_texture(num_surfaces: int, wave: Tensor | None = None) -> Texture:
    """Texture k is grey (k + 1) / 20, and 0.5 brighter where the pattern is 1; light from everywhere."""
    paints = num_surfaces - 1 + ROOM_SIDES
    color = ((torch.arange(paints) + 1) / 20)[None, :, None].expand(-1, -1, 3)
    wave = torch.zeros(1, paints, 1, 6) if wave is None else wave.expand(1, paints, -1, -1)
    one = torch.ones(1, 1)
    above, behind = torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.1, 0.2, 0.3]])
    return Texture(color, torch.full((1, paints, 3), 0.5), wave, above, one, behind, torch.ones(1, 1, 3), one)


class TestShading:
    def test_room_sides_differ(self) -> None:
        """Looking along +z, -z, +x: sides 5, 4, 1 of the room, whose textures start at 1."""
        shapes = one_object(False, (1, 1, 1), has_room=True)
        along_x = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
        for axes, side in ((ALONG_Z, 5), (DOWN, 4), (along_x, 1)):
            cameras = look((3, 3, 3), (0, 0), axes)
            image = shade(shapes, plain_texture(2), cameras, *cast_rays(shapes, cameras))
            # The texture of side s is number 1 + s; the empty pattern mixes both colours half and half.
            assert image.flatten().tolist() == pytest.approx([(side + 2) / 20 + 0.25] * 3)

    def test_waves(self) -> None:
        """Pattern 0.5 + 0.2 sin(a) + 0.1 sin(b), a = π/6 x + π/3, b = 2 sin(a), at x = 1 on a unit cube."""
        first = [math.pi / 6, 0, 0, math.pi / 3, 0.2, 0]
        second = [0, 0, 0, 0, 0.1, 2]
        along_x = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
        shapes, cameras = one_object(True, (1, 1, 1)), look((-5, 0, 0), (0, 0), along_x)
        near = shade(
            shapes, plain_texture(2, torch.tensor([first, second])), cameras, *cast_rays(shapes, cameras)
        )
        a = -math.pi / 6 + math.pi / 3  # the camera sees the side x = -1
        pattern = 0.5 + 0.2 * math.sin(a) + 0.1 * math.sin(2 * math.sin(a))
        assert near.flatten().tolist() == pytest.approx([0.05 + 0.5 * pattern] * 3, rel=1e-5)

    def test_light_gain_gamma_and_background(self) -> None:
        """A sphere's pole under light from above: full light; seen from the side: ambient light alone."""
        shapes = one_object(False, (1, 1, 1))
        texture = plain_texture(2)._replace(ambient=torch.full((1, 1), 0.4), gamma=torch.full((1, 1), 2.0))
        texture = texture._replace(gain=torch.tensor([[[1.0, 0.5, 2.0]]]))
        along_x = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]])
        for position, axes, light in (((0, 0, 5), DOWN, 1.0), ((-5, 0, 0), along_x, 0.4)):
            cameras = look(position, (0, 0), axes)
            image = shade(shapes, texture, cameras, *cast_rays(shapes, cameras)).flatten().tolist()
            assert image == pytest.approx([(0.3 * light * gain) ** 2 for gain in (1, 0.5, 2)], rel=1e-4)
        cameras = look((5, 0, 5), (0, 0), DOWN)
        image = shade(shapes, texture, cameras, *cast_rays(shapes, cameras)).flatten().tolist()
        assert image == pytest.approx([0.1**2, 0.1**2, 0.6**2])
