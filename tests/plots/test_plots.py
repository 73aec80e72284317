"""Clouds, viewpoints, heat maps and the contact sheet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from hess_plugin.datasets.synthetic import synthetic_scene
from hess_plugin.geometry.cameras import camera_centers
from hess_plugin.geometry.similarity import Similarity
from hess_plugin.plots import (
    Curve,
    Line,
    Panel,
    PointCloud,
    SheetBlock,
    SheetColumn,
    clean_mask,
    colored_cloud,
    contact_sheet,
    draw_cloud,
    frustums,
    overview,
    score_heatmap,
    tradeoff_figure,
)
from hess_plugin.plots.figure import new_figure, png, save, svg
from hess_plugin.plots.point_cloud import move_cameras, surface_normals, write_cloud, write_frustums
from hess_plugin.plots.render import look_at, scene_middle


def _pixels(figure) -> np.ndarray:  # type: ignore[no-untyped-def]
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


class TestCleanMask:
    def test_drops_the_least_confident_share(self) -> None:
        confidence = torch.arange(50.0).reshape(2, 5, 5)
        keep = clean_mask(torch.ones(2, 5, 5), confidence, drop_share=0.2)
        assert torch.equal(keep, confidence >= 10)

    def test_drops_both_sides_of_a_depth_jump_only(self) -> None:
        depth = torch.ones(1, 4, 6)
        depth[..., 3:] = 2.0
        keep = clean_mask(depth, torch.ones(1, 4, 6), drop_share=0.0)
        assert torch.equal(keep[0, 0], torch.tensor([True, True, False, False, True, True]))

    def test_slope_below_the_limit_stays(self) -> None:
        depth = (1.05 ** torch.arange(7.0)).expand(1, 3, 7)
        assert clean_mask(depth, torch.ones(1, 3, 7), drop_share=0.0, max_jump=0.06).all()
        assert not clean_mask(depth, torch.ones(1, 3, 7), drop_share=0.0, max_jump=0.04).any()

    def test_unknown_depth_is_never_shown(self) -> None:
        depth = torch.ones(1, 5, 5)
        depth[0, 0, 0], depth[0, 4, 4], depth[0, 4, 0] = 0.0, torch.nan, -1.0
        keep = clean_mask(depth, torch.ones(1, 5, 5), drop_share=0.0)
        assert not keep[0, [0, 4, 4], [0, 4, 0]].any()
        assert keep[0, 2, 2]

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match=r"must both be \[V, height, width\], got \[2, 3, 3\]"):
            clean_mask(torch.ones(2, 3, 3), torch.ones(3, 3))


class TestTradeoff:
    CURVES = (
        Curve("uniform", [0.75, 0.25], [0.8, 0.4], [0.7, 0.3], [0.9, 0.5]),
        Curve("HeSS", [0.25, 0.75], [0.7, 0.85], [0.6, 0.8], [0.8, 0.9]),
    )

    def test_points_are_drawn_in_order_of_density(self) -> None:
        figure = tradeoff_figure([Panel("AUC@30", self.CURVES, True, Line(0.9, "dense"))], "title")
        dense, uniform, hess = figure.axes[0].lines
        assert list(dense.get_ydata()) == [0.9, 0.9]
        assert list(uniform.get_xdata()) == list(hess.get_xdata()) == [0.25, 0.75]
        assert list(uniform.get_ydata()) == [0.4, 0.8]
        assert uniform.get_color() != hess.get_color()

    def test_same_method_same_colour_in_all_panels(self) -> None:
        panels = [Panel("a", self.CURVES, True), Panel("b", self.CURVES[1:], False)]
        figure = tradeoff_figure(panels, "title")
        assert figure.axes[1].lines[0].get_color() == figure.axes[0].lines[1].get_color()
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["uniform", "HeSS"]

    def test_bytes_depend_on_the_figure_alone(self) -> None:
        made = [tradeoff_figure([Panel("a", self.CURVES, True)], "title") for _ in range(2)]
        assert svg(made[0]) == svg(made[1])
        assert b">HeSS<" in svg(made[0])  # text stays text
        assert png(made[0]) == png(made[1])

    def test_bad_input(self) -> None:
        for panels in ([], [Panel("a", [], True)]):
            with pytest.raises(ValueError, match="at least one"):
                tradeoff_figure(panels, "title")


class TestClouds:
    def test_colours_follow_their_points(self) -> None:
        images, points = torch.rand(2, 3, 4, 5), torch.rand(2, 4, 5, 3)
        mask = torch.zeros(2, 4, 5, dtype=torch.bool)
        mask[1, 2, 3] = True
        cloud = colored_cloud(images, points, mask, torch.eye(3, 4).expand(2, 3, 4))
        assert torch.equal(cloud.points, points[1, 2, 3][None])
        assert torch.equal(cloud.colors, images[1, :, 2, 3][None])

    def test_cloud_survives_its_file(self, tmp_path: Path) -> None:
        cloud = PointCloud(torch.randn(7, 3), torch.rand(7, 3), torch.randn(7, 3))
        loaded = trimesh.load(write_cloud(tmp_path / "cloud.ply", cloud))
        np.testing.assert_allclose(loaded.vertices, cloud.points, atol=1e-6)
        np.testing.assert_allclose(loaded.colors[:, :3] / 255, cloud.colors, atol=0.5 / 255 + 1e-6)

    def test_pyramid_spans_the_image(self) -> None:
        """Focal length 2 on a 4 x 6 image: at distance 2 the corners are half the image off the axis."""
        intrinsics = torch.tensor([[2.0, 0, 2.5], [0, 2.0, 1.5], [0, 0, 1]])[None]
        extrinsics = torch.eye(3, 4)[None].clone()
        extrinsics[0, :, 3] = torch.tensor([0.0, 0.0, -1.0])  # the camera stands at z = 1
        pyramid = frustums(extrinsics, intrinsics, (4, 6), length=2.0)[0]
        expected = [[0, 0, 1], [-3, -2, 3], [3, -2, 3], [3, 2, 3], [-3, 2, 3]]
        torch.testing.assert_close(pyramid, torch.tensor(expected, dtype=torch.float32))

    def test_pyramids_are_one_mesh(self, tmp_path: Path) -> None:
        scene = synthetic_scene(5, 3, image_size=16)
        pyramids = frustums(scene.extrinsics, scene.intrinsics, (16, 16), 0.5)
        mesh = trimesh.load(write_frustums(tmp_path / "cameras.ply", pyramids))
        assert mesh.faces.shape == (3 * 6, 3)
        np.testing.assert_allclose(mesh.vertices[::5], camera_centers(scene.extrinsics), atol=1e-5)
        assert all(part.is_watertight and part.volume > 0 for part in mesh.split(only_watertight=False))

    def test_moved_cameras_see_the_moved_world(self) -> None:
        """A point keeps its pixel, and its depth grows by the scale."""
        scene = synthetic_scene(5, 3, image_size=16)
        rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
        rotation *= rotation.det()
        similarity = Similarity(torch.tensor(2.5), rotation, torch.tensor([1.0, -2.0, 3.0]))
        point = torch.tensor([0.3, -0.2, 0.5])
        before = scene.extrinsics[:, :, :3] @ point + scene.extrinsics[:, :, 3]
        moved = move_cameras(scene.extrinsics, similarity)
        after = moved[:, :, :3] @ similarity.apply(point) + moved[:, :, 3]
        torch.testing.assert_close(after, 2.5 * before, atol=1e-4, rtol=1e-4)


class TestNormals:
    def test_of_a_plane(self) -> None:
        """Of z = 0.5 x + 4 before a camera at the origin; far pixels that are not finite spoil no others."""
        v, u = torch.meshgrid(torch.linspace(-1, 1, 7), torch.linspace(-1, 1, 9), indexing="ij")
        rays = torch.stack([u, v, torch.ones_like(u)], -1)
        points = (4 / (1 - 0.5 * u))[..., None] * rays
        points[0, 0] = torch.nan
        for camera in (torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 9.0]])):
            normals = surface_normals(points[None], camera)[0, 1:, 1:]
            expected = torch.tensor([0.5, 0.0, -1.0]) / 1.25**0.5 * (1 if camera[0, 2] == 0 else -1)
            torch.testing.assert_close(normals[1:, 1:], expected.expand(5, 7, 3), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2)])
    def test_where_neighbours_say_nothing(self, size: tuple[int, int]) -> None:
        points = torch.tensor([0.0, 0.0, 2.0]).expand(1, *size, 3)
        toward = torch.tensor([0.0, 0.0, -1.0]).expand(1, *size, 3)
        torch.testing.assert_close(surface_normals(points, torch.zeros(1, 3)), toward)


class TestViewpoint:
    def test_look_at(self) -> None:
        target, up = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, 1.0])
        view = look_at(torch.tensor([1.0, -3.0, 3.0]), target, up)
        place, depth = view.project(torch.stack([target, target + up, target + torch.tensor([1.0, 0, 0])]))
        torch.testing.assert_close(depth, torch.full((3,), 5.0))
        # The image's y axis points down, and +x of the world is to the right for who looks along +y.
        torch.testing.assert_close(place, torch.tensor([[0.0, 0.0], [0.0, -0.2], [0.2, 0.0]]))

    @pytest.mark.parametrize("seed", [0, 1, 2, 3])
    def test_overview_is_behind_and_above_and_holds_all_cameras(self, seed: int) -> None:
        scene = synthetic_scene(seed, 6, image_size=16)
        points = scene.world_points[scene.mask]
        view = overview(points, scene.extrinsics, aspect=1.5)
        centers = camera_centers(scene.extrinsics)
        place, depth = view.project(centers)
        left, right, bottom, top = view.window
        assert (depth > 0).all()
        assert ((place[:, 0] > left) & (place[:, 0] < right)).all()
        assert ((place[:, 1] > top) & (place[:, 1] < bottom)).all()
        assert (right - left) / (bottom - top) == pytest.approx(1.5, rel=1e-4)
        eye, middle = camera_centers(view.extrinsics), scene_middle(points, scene.extrinsics)
        assert eye[2] > centers[0, 2]  # synthetic worlds have z up
        assert (eye - middle) @ (centers[0] - middle) > 0
        assert (eye - middle).norm() > (centers[0] - middle).norm()

    def test_nearer_points_cover_farther_ones(self) -> None:
        view = look_at(torch.tensor([0.0, -5.0, 0.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
        red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1])
        line = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        for points in (line, line.flip(0)):
            colors = torch.stack([red, blue]) if points is line else torch.stack([blue, red])
            figure = new_figure(1, 1)
            no_cameras = torch.empty(0, 5, 3)
            cloud = PointCloud(points, colors, torch.tensor([[0.0, -1.0, 0.0]]).expand(2, 3))
            draw_cloud(figure.add_axes((0, 0, 1, 1)), cloud, no_cameras, view, size=10)
            assert _pixels(figure)[50, 50].tolist() == [255, 0, 0]

    def test_backs_are_not_drawn(self) -> None:
        """A red wall seen from its back does not hide the blue one behind it."""
        view = look_at(torch.tensor([0.0, -5.0, 0.0]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
        points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        cloud = PointCloud(points, torch.eye(3)[[0, 2]], torch.tensor([[0.0, 1.0, 0.0], [0.6, -0.8, 0.0]]))
        assert cloud.seen_from(torch.tensor([0.0, -5.0, 0.0])).tolist() == [False, True]
        figure = new_figure(1, 1)
        draw_cloud(figure.add_axes((0, 0, 1, 1)), cloud, torch.empty(0, 5, 3), view, size=10)
        assert _pixels(figure)[50, 50].tolist() == [0, 0, 255]

    def test_empty_cloud_still_shows_cameras(self) -> None:
        scene = synthetic_scene(5, 3, image_size=16)
        view = overview(scene.world_points[scene.mask], scene.extrinsics)
        figure = new_figure(2, 2)
        pyramids = frustums(scene.extrinsics, scene.intrinsics, (16, 16), 0.5)
        nothing = PointCloud(*[torch.empty(0, 3)] * 3)
        draw_cloud(figure.add_axes((0, 0, 1, 1)), nothing, pyramids, view)
        assert (_pixels(figure).min(axis=2) < 200).any()


class TestHeatmap:
    def test_darkest_cell_is_the_most_sensitive_head(self) -> None:
        shares = {name: torch.full((6, 4), 0.1, dtype=torch.float64) for name in ("camera", "points")}
        shares["camera"][2, 3] = 0.7
        figure = score_heatmap(shares)
        panel = figure.axes[0]
        image = panel.images[0].get_array()
        assert np.unravel_index(image.argmax(), image.shape) == (3, 2)  # heads on y, layers on x
        assert [label.get_text() for label in panel.get_xticklabels()] == list("123456")
        assert panel.images[0].get_clim() == figure.axes[1].images[0].get_clim() == (0, pytest.approx(0.7))
        pixels = _pixels(figure)
        x, y = panel.transData.transform((2, 3)).astype(int)
        assert pixels[pixels.shape[0] - y, x].sum() < 300

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match=r"each \[L, H\]; got camera \[2, 3\]"):
            score_heatmap({"camera": torch.ones(2, 3)})


def _block(num_views: int, size: tuple[int, int]) -> SheetBlock:
    scene = synthetic_scene(3, num_views, image_size=size)
    pyramids = frustums(scene.extrinsics, scene.intrinsics, size, 0.4)
    cloud = colored_cloud(scene.images, scene.world_points, scene.mask, scene.extrinsics)
    depth = torch.where(scene.mask, scene.depth, torch.nan)
    columns = [SheetColumn(title, "a number", depth, cloud, pyramids) for title in ("Dense", "HeSS")]
    view = overview(scene.world_points[scene.mask], scene.extrinsics)
    return SheetBlock("scene", scene.images, view, columns)


class TestContactSheet:
    @pytest.mark.parametrize(("num_views", "size"), [(1, (16, 16)), (3, (14, 30)), (7, (30, 14))])
    def test_shapes(self, tmp_path: Path, num_views: int, size: tuple[int, int]) -> None:
        scores = {name: torch.rand(2, 3) for name in ("camera", "points")}
        figure = contact_sheet("title", "subtitle", "caption", [_block(num_views, size)], scores)
        with Image.open(save(figure, tmp_path / "sheet.png")) as image:
            assert image.width == 1600
            pixels = np.asarray(image.convert("RGB"))
        assert (pixels[[0, -1]] == 255).all()  # nothing is cut off at the top or the bottom
        assert (pixels[:, [0, -1]] == 255).all()

    def test_one_depth_range_per_scene(self) -> None:
        block = _block(3, (16, 16))
        farther = SheetColumn("Far", "", block.columns[0].depth * 3, *_cloud_of(block))
        figure = contact_sheet(
            "", "", "", [SheetBlock("s", block.photos, block.viewpoint, [*block.columns, farther])], None
        )
        ranges = {
            image.get_clim() for axes in figure.axes for image in axes.images if image.get_array().ndim == 2
        }
        assert len(ranges) == 1

    def test_all_depth_unknown(self) -> None:
        block = _block(2, (16, 16))
        unknown = SheetColumn("None", "", torch.full((2, 16, 16), torch.nan), *_cloud_of(block))
        _pixels(contact_sheet("", "", "", [SheetBlock("s", block.photos, block.viewpoint, [unknown])], None))


def _cloud_of(block: SheetBlock):  # type: ignore[no-untyped-def]
    return block.columns[0].cloud, block.columns[0].pyramids


@pytest.mark.parametrize(("module", "call"), [
    ("matplotlib", "from hess_plugin.plots.figure import new_figure; new_figure(1, 1)"),
    ("trimesh", "from hess_plugin.plots.point_cloud import write_cloud as w, PointCloud as P; "
                "import torch; w('x.ply', P(*[torch.zeros(1, 3)] * 3))"),
])  # fmt: skip
def test_missing_extra_is_named(module: str, call: str) -> None:
    """Importing the package works without the extra; using it says what to install."""
    hidden = f"import sys; sys.modules[{module!r}] = None; import hess_plugin.plots; "
    result = subprocess.run(
        [sys.executable, "-c", hidden + call], capture_output=True, text=True, check=False
    )
    assert result.stderr.strip().endswith('pip install "hess-plugin[demo]".')


def test_no_global_state() -> None:
    """Drawing must not touch pyplot, whose figures live until the process ends."""
    code = (
        "import sys, torch; from hess_plugin.plots import score_heatmap; "
        "score_heatmap({n: torch.rand(2, 3) for n in ('camera', 'points')}).canvas.draw(); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
