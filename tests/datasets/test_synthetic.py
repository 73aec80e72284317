"""Synthetic scenes: agreement between views and sizes, determinism, bad input."""

from __future__ import annotations

import pytest
import torch

from hess_plugin.datasets import Dataset, open_dataset
from hess_plugin.datasets.raycast import Cameras, cast_rays
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
