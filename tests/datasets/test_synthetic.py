"""Synthetic scenes: hand-worked rays, exact agreement between views and sizes, determinism."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hess_plugin.datasets import Dataset, open_dataset
from hess_plugin.datasets.camera_paths import GROUPS, CameraPath
from hess_plugin.datasets.interior import MATERIALS, OBJECTS, PANELS, build_texture
from hess_plugin.datasets.raycast import ROOM_SIDES, Cameras, Shapes, Texture, cast_rays, rotate, shade
from hess_plugin.datasets.synthetic import (
    _SCENE_FIELDS,
    _build_shapes,
    _split,
    draw_numbers,
    render_scenes,
    settings_of,
    synthetic_scene,
)
from hess_plugin.errors import InputError
from hess_plugin.geometry.cameras import camera_centers, unproject_depth


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


class TestScene:
    def test_other_views_see_the_same_surface(self) -> None:
        """Rays from view 1 at the points that view 0 sees meet them, or something nearer; never farther."""
        numbers = draw_numbers(1, 2, torch.Generator().manual_seed(5))
        batch = render_scenes(
            numbers, (20, 30), settings_of(numbers)._replace(orbit_span=torch.tensor([0.4]))
        )
        points = unproject_depth(batch.depth, batch.extrinsics, batch.intrinsics)[0, 0]
        in_second = (
            points[batch.depth[0, 0] > 0] @ batch.extrinsics[0, 1, :, :3].T + batch.extrinsics[0, 1, :, 3]
        )
        slope = in_second[:, :2] / in_second[:, 2:]
        to_camera = batch.extrinsics[:, 1:, :, :3]
        second = Cameras(
            camera_centers(batch.extrinsics)[:, 1:],
            to_camera.mT,
            slope[None, None, None, :, 0],
            slope[None, None, :, 1:],
        )
        shapes = _build_shapes(_split(numbers.scene, _SCENE_FIELDS), settings_of(numbers).furnished)
        found = cast_rays(shapes, second)[0][0, 0].diagonal()  # rows and columns are one list of rays
        ratio = found / in_second[:, 2]
        assert len(ratio) > 200
        assert (ratio < 1.0001).all()
        assert ((ratio - 1).abs() < 1e-4).float().mean() > 0.7

    def test_cameras_orbit(self) -> None:
        for seed in range(5):
            centres = camera_centers(synthetic_scene(seed, 12, image_size=2).extrinsics)
            distance = centres.norm(dim=-1)
            assert (distance > 1.99).all()
            assert (distance < 4.41).all()
            assert (centres[:, 2] / distance > math.sin(0.09)).all()
            assert (centres[:, 2] / distance < math.sin(1.06)).all()

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

    def test_a_larger_image_shows_the_same(self) -> None:
        """By an odd factor, here 3, every pixel's centre is a centre in the larger image too."""
        small, large = (synthetic_scene(4, 2, image_size=(s * 20, s * 28)) for s in (1, 3))
        torch.testing.assert_close(large.extrinsics, small.extrinsics)
        torch.testing.assert_close(large.depth[:, 1::3, 1::3], small.depth, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(large.images[..., 1::3, 1::3], small.images, rtol=1e-2, atol=1e-2)

    def test_deterministic(self) -> None:
        first, again, other = (synthetic_scene(seed, 3, image_size=16) for seed in (1, 1, 2))
        assert torch.equal(first.images, again.images)
        assert not torch.allclose(first.images, other.images)

    def test_batch_is_made_of_its_scenes(self) -> None:
        parts = [draw_numbers(1, 3, torch.Generator().manual_seed(seed)) for seed in (7, 8)]
        together = type(parts[0])(*(torch.cat(part) for part in zip(*parts, strict=True)))
        batch = render_scenes(together, (16, 24))
        for row, seed in enumerate((7, 8)):
            scene = synthetic_scene(seed, 3, image_size=(16, 24))
            torch.testing.assert_close(batch.images[row], scene.images)
            torch.testing.assert_close(batch.depth[row], scene.depth)

    def test_ranges(self) -> None:
        batch = render_scenes(draw_numbers(12, 3, torch.Generator().manual_seed(0)), (24, 32))
        assert batch.images.shape == (12, 3, 3, 24, 32)
        assert batch.depth.shape == (12, 3, 24, 32)
        assert batch.images.min() >= 0
        assert batch.images.max() <= 1
        known = batch.depth > 0
        assert batch.depth[known].min() > 0.05
        closed = known.flatten(1).all(1)
        assert 6 <= closed.sum() < 12  # most of the scenes stand in a room
        rotation = batch.extrinsics[..., :3]
        torch.testing.assert_close(
            rotation @ rotation.mT, torch.eye(3).expand_as(rotation), rtol=0, atol=1e-5
        )
        assert (torch.linalg.det(rotation) > 0).all()
        fov = 2 * torch.atan(16 / batch.intrinsics[..., 0, 0])
        assert fov.min() >= 0.6
        assert fov.max() <= 1.3
        assert (batch.intrinsics[..., :2, 2] == torch.tensor([15.5, 11.5])).all()

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

    @pytest.mark.parametrize("size", [(1, 1), (7, 13), (13, 7)])
    def test_odd_sizes_and_one_view(self, size: tuple[int, int]) -> None:
        scene = synthetic_scene(0, 1, image_size=size)
        assert scene.images.shape == (1, 3, *size)
        assert scene.has_ground_truth

    @pytest.mark.parametrize(
        ("seed", "views", "size", "message"),
        [(-1, 2, 8, "seed .* got -1"), (0, 0, 8, "got 0 views"), (0, 2, (8, 0), r"size \(8, 0\)")],
    )
    def test_bad_input(self, seed: int, views: int, size, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            synthetic_scene(seed, views, image_size=size)


class TestDataset:
    def open(self) -> Dataset:
        return open_dataset("synthetic", root=None, image_width=16, patch_size=8)

    def test_scenes_are_those_of_the_seeds(self) -> None:
        """Scores made earlier name these scenes: neither ids nor content may change."""
        dataset = self.open()
        assert dataset.choose(3, seed=5) == ["synthetic-10000", "synthetic-10001", "synthetic-10002"]
        scene, known = dataset.load("synthetic-10001", 3, seed=9), synthetic_scene(10_001, 3, image_size=16)
        assert scene.name == known.name == "synthetic-10001"
        for name in ("images", "extrinsics", "intrinsics", "depth"):
            assert torch.equal(getattr(scene, name), getattr(known, name))
        assert scene.view_ids == ("000", "001", "002")
        assert scene.images.shape == (3, 3, 16, 16)

    def test_ids_are_sorted(self) -> None:
        ids = self.open().scene_ids()
        assert ids == sorted(ids)
        assert set(self.open().choose(99_999, 0)) == set(ids)

    def test_bad_input(self) -> None:
        with pytest.raises(InputError, match="synthetic has no scene 'synthetic-9'"):
            self.open().load("synthetic-9", 3, 0)
        for num_views in (None, 0):
            with pytest.raises(InputError, match=f"number of views of at least 1, got {num_views}"):
                self.open().load("synthetic-10000", num_views, 0)
