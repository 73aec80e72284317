"""What stands in procedural rooms and how it is painted."""

from __future__ import annotations

import pytest
import torch

from hess_plugin.datasets.interior import MATERIALS, OBJECTS, PANELS, build_texture
from hess_plugin.datasets.raycast import rotate
from hess_plugin.datasets.synthetic import (
    _SCENE_FIELDS,
    _build_shapes,
    _split,
    draw_numbers,
    render_scenes,
    settings_of,
)
from hess_plugin.geometry.cameras import camera_centers


class TestInterior:
    def test_room_clears_cameras(self) -> None:
        numbers = draw_numbers(64, 24, torch.Generator().manual_seed(2))
        batch = render_scenes(numbers, (2, 2))
        shapes = _build_shapes(_split(numbers.scene, _SCENE_FIELDS), settings_of(numbers).furnished)
        away = camera_centers(batch.extrinsics) - shapes.centre[:, None, -1]
        in_unit = rotate(shapes.to_unit[:, None, -1], away)
        assert in_unit.abs().max() < 1
        assert in_unit.abs().max() > 0.5  # and it is not simply huge

    def test_objects_do_not_sink_through_the_floor(self) -> None:
        numbers = draw_numbers(64, 1, torch.Generator().manual_seed(2))
        shapes = _build_shapes(_split(numbers.scene, _SCENE_FIELDS), settings_of(numbers).furnished)
        centre, floor = shapes.centre[..., 2], shapes.centre[:, -1, 2] - 1 / shapes.to_unit[:, -1, 2, 2]
        assert (centre[:, :-1] > floor[:, None] - 0.1).all()
        assert (centre[:, 1 : 1 + OBJECTS] > 0).all()  # they lie on the stage

    def test_furnished_rooms_are_full_from_wall_to_wall(self) -> None:
        fields = _split(draw_numbers(64, 1, torch.Generator().manual_seed(2)).scene, _SCENE_FIELDS)
        chosen = torch.arange(64) % 2 == 0
        plain, shapes = (_build_shapes(fields, where) for where in (torch.zeros_like(chosen), chosen))
        moved = (plain.centre != shapes.centre).flatten(1).any(1)
        assert torch.equal(moved, chosen & plain.has_room)
        assert torch.equal(plain.to_unit[~moved], shapes.to_unit[~moved])
        room, to_room = shapes.centre[:, None, -1], shapes.to_unit[:, None, -1]
        of_plain, place = (
            rotate(to_room, s.centre[:, 1 : 1 + OBJECTS] - room)[moved] for s in (plain, shapes)
        )
        scattered = (of_plain != place).any(-1).all(0)
        assert scattered.sum() == OBJECTS / 2  # the others stay on the stage
        assert place.abs().max() < 1  # they stand in the room
        place, of_plain = place[:, scattered], of_plain[:, scattered]
        assert place[..., 2].mean() < of_plain[..., 2].mean() - 0.1  # on its floor, not at the stage's height
        across, of_plain = place[..., :2].std(1), of_plain[..., :2].std(1)
        assert (across > 0.1).all()
        assert across.mean() > 3 * of_plain.mean()

    def test_furnished_rooms_have_two_floorings(self) -> None:
        fields = _split(draw_numbers(64, 1, torch.Generator().manual_seed(2)).scene, _SCENE_FIELDS)
        shapes = _build_shapes(fields, torch.ones(64, dtype=torch.bool))
        room, flooring = -1, -1 - PANELS
        to_room = shapes.to_unit[:, room]
        middle = rotate(to_room, shapes.centre[:, flooring] - shapes.centre[:, room])[shapes.has_room]
        halves = (to_room / shapes.to_unit[:, flooring]).diagonal(dim1=1, dim2=2)[shapes.has_room]
        low, high = middle - halves, middle + halves
        assert (high[:, 2] + 1 < 0.01).all()  # the room is from -1 to 1
        assert (high[:, 2] > -1).all()
        assert (low[:, :2].abs() < 1.0001).all()
        assert (high[:, :2].abs() < 1.0001).all()
        touching = (torch.stack([low, high])[..., :2].abs() > 0.9999).sum((0, 2))
        assert (touching == 3).all()  # along all of one wall, but not all of the room
        shares = halves[:, :2].amin(1)
        assert shares.min() < 0.15
        assert shares.max() > 0.6

    def test_furnished_rooms_have_few_paints_half_of_them_plain(self) -> None:
        numbers = draw_numbers(64, 1, torch.Generator().manual_seed(2))
        fields, gain = _split(numbers.scene, _SCENE_FIELDS), torch.full((64, 1, 4), 0.5)
        furnished = torch.arange(64) % 2 == 0
        shapes = _build_shapes(fields, furnished)
        texture = build_texture(fields, gain, shapes, furnished)
        plain = (texture.change == 0).all(-1)
        chosen = furnished & shapes.has_room
        assert plain[chosen].float().mean().item() == pytest.approx(0.5, abs=0.1)
        assert not plain[~chosen].any()
        for is_chosen, color in zip(chosen, texture.color, strict=True):
            assert len(color.unique(dim=0)) == (MATERIALS if is_chosen else len(color))
