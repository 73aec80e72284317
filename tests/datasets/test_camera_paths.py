"""Where the cameras of procedural scenes stand and look."""

from __future__ import annotations

import math

import pytest
import torch

from hess_plugin.datasets.camera_paths import GROUPS, CameraPath
from hess_plugin.datasets.synthetic import (
    _SCENE_FIELDS,
    _split,
    draw_numbers,
    render_scenes,
    settings_of,
    synthetic_scene,
)
from hess_plugin.geometry.cameras import camera_centers


class TestCameraPaths:
    def test_cameras_orbit(self) -> None:
        for seed in range(5):
            centres = camera_centers(synthetic_scene(seed, 12, image_size=2).extrinsics)
            distance = centres.norm(dim=-1)
            assert (distance > 1.99).all()
            assert (distance < 4.41).all()
            assert (centres[:, 2] / distance > math.sin(0.09)).all()
            assert (centres[:, 2] / distance < math.sin(1.06)).all()

    def test_cameras_see_the_scene_upright(self) -> None:
        """The top of the image is up in the world: its rays rise above those of the bottom."""
        scene = synthetic_scene(11, 6, image_size=(9, 9))
        down_in_world = scene.extrinsics[:, 1, :3]
        assert (down_in_world[:, 2] < -0.5).all()

    def test_orbit_span_is_obeyed(self) -> None:
        numbers = draw_numbers(3, 8, torch.Generator().manual_seed(3))
        spans = torch.tensor([0.1, 0.1, 3.0])
        batch = render_scenes(numbers, (4, 4), settings_of(numbers)._replace(orbit_span=spans))
        flat = torch.nn.functional.normalize(camera_centers(batch.extrinsics)[..., :2], dim=-1)
        widest = torch.einsum("bvi,bwi->bvw", flat, flat).clamp(-1, 1).acos().amax((1, 2))
        assert (widest[:2] < 0.1).all()
        assert 2 < widest[2] < 3

    def test_field_of_view_is_obeyed(self) -> None:
        numbers = draw_numbers(2, 3, torch.Generator().manual_seed(3))
        fields = torch.tensor([0.4, 1.5])
        batch = render_scenes(numbers, (5, 8), settings_of(numbers)._replace(field_of_view=fields))
        focal = 4 / torch.tan(fields / 2)
        torch.testing.assert_close(batch.intrinsics[..., 0, 0], focal[:, None].expand(2, 3))

    def test_walks_are_straight_level_and_inside(self) -> None:
        numbers = draw_numbers(16, 6, torch.Generator().manual_seed(4))
        settings = settings_of(numbers)._replace(orbit_span=torch.full((16,), 2.0))
        arcs = render_scenes(numbers, (6, 8), settings)
        some = torch.arange(16) % 2 == 0
        kind = torch.where(some, CameraPath.WALK, CameraPath.ARC)
        batch = render_scenes(numbers, (6, 8), settings._replace(path_kind=kind))
        centres = camera_centers(batch.extrinsics)
        moved = (centres != camera_centers(arcs.extrinsics)).flatten(1).any(1)
        assert not moved[~some].any()
        assert 4 <= moved.sum() < 8  # those without a room stay on their arcs
        walk = centres[moved] - centres[moved].mean(1, keepdim=True)
        assert (torch.linalg.svdvals(walk)[:, 1] < 0.3).all()
        assert (walk[..., 2].abs() < 0.25).all()
        assert (batch.depth[moved] > 0).all()  # walls all around
        assert torch.equal(batch.images[~moved], arcs.images[~moved])

    @pytest.mark.parametrize("views", [2, 12])
    def test_visits_are_to_few_places_inside_where_cameras_turn(self, views: int) -> None:
        numbers = draw_numbers(16, views, torch.Generator().manual_seed(5))
        numbers.scene[:, -3] = 0  # the path's number for the length of steps there: none
        settings = settings_of(numbers)._replace(orbit_span=torch.full((16,), 3.0))
        arcs = render_scenes(numbers, (6, 8), settings)
        visits = torch.full((16,), CameraPath.VISIT)
        batch = render_scenes(numbers, (6, 8), settings._replace(path_kind=visits))
        centres = camera_centers(batch.extrinsics)
        moved = (centres != camera_centers(arcs.extrinsics)).flatten(1).any(1)
        assert 8 <= moved.sum() < 16  # those without a room stay on their arcs
        assert (batch.depth[moved] > 0).all()  # walls all around
        near = torch.cdist(centres, centres)[moved] < 0.15 * 2 * 3**0.5
        linked = torch.linalg.matrix_power(near.float(), views) > 0
        groups = [len(same.unique(dim=0)) for same in linked]
        assert 2 <= max(groups) <= min(views, GROUPS)
        ahead = batch.extrinsics[moved][:, :, 2, :3]
        angle = (ahead @ ahead.mT).clamp(-1, 1).acos()
        within = angle[near & ~torch.eye(views, dtype=torch.bool)]
        assert views < GROUPS or 0.3 < within.max() < 2

    def test_places_visited_are_apart_on_short_arcs_too(self) -> None:
        numbers = draw_numbers(16, 12, torch.Generator().manual_seed(6))
        numbers.scene[:, -3] = 0  # no steps
        settings = settings_of(numbers)._replace(
            orbit_span=torch.full((16,), 0.1), path_kind=torch.full((16,), CameraPath.VISIT)
        )
        centres = camera_centers(render_scenes(numbers, (2, 2), settings).extrinsics)
        inside = _split(numbers.scene, _SCENE_FIELDS)["room"][:, 0] < 0.75
        assert (torch.cdist(centres, centres)[inside].amax((1, 2)) > 0.8).all()

    def test_visitors_hold_cameras_alike_or_not(self) -> None:
        numbers = draw_numbers(16, 12, torch.Generator().manual_seed(7))
        settings = settings_of(numbers)._replace(path_kind=torch.full((16,), CameraPath.VISIT))
        inside = _split(numbers.scene, _SCENE_FIELDS)["room"][:, 0] < 0.75
        spread = []
        for unlike in (0.0, 0.5, 1.0):
            numbers.scene[:, -2] = unlike  # the path's number for how much heights and tilts differ
            extrinsics = render_scenes(numbers, (2, 2), settings).extrinsics[inside]
            spread.append(torch.stack([camera_centers(extrinsics)[..., 2], extrinsics[..., 2, 2]]).std(-1))
        assert spread[0].max() < 1e-5
        assert spread[2].min() > 0.05
        torch.testing.assert_close(spread[1][0], spread[2][0] / 4)

    def test_visitors_take_steps_without_turning_for_it(self) -> None:
        numbers = draw_numbers(16, 12, torch.Generator().manual_seed(5))
        settings = settings_of(numbers)._replace(path_kind=torch.full((16,), CameraPath.VISIT))
        batches = []
        for steps in (0, 1):
            numbers.scene[:, -3] = steps  # the path's number for their length, none and the longest
            batches.append(render_scenes(numbers, (6, 8), settings))
        still, walked = (camera_centers(batch.extrinsics) for batch in batches)
        moved = (still - walked).norm(dim=-1)
        inside = _split(numbers.scene, _SCENE_FIELDS)["room"][:, 0] < 0.75
        assert 1 < moved[inside].max() <= 1.5
        assert (batches[1].depth[inside] > 0).all()
        torch.testing.assert_close(still[..., 2], walked[..., 2])
        torch.testing.assert_close(
            batches[0].extrinsics[inside][..., :3], batches[1].extrinsics[inside][..., :3]
        )
