"""What the small model is taught with: lessons, looks, losses."""

from __future__ import annotations

import math

import pytest
import torch

from hess_plugin.datasets.camera_paths import CameraPath
from hess_plugin.datasets.synthetic import draw_numbers, render_scenes, settings_of
from hess_plugin.geometry.cameras import encode_pose, quaternion_to_rotation


class TestRecipe:
    def test_small_enough_to_ship(self, examples) -> None:
        model = examples["tiny_vggt_recipe"].Recipe().build_model()
        assert 2 * sum(p.numel() for p in model.parameters()) < 24e6

    def test_lessons_grow(self, examples) -> None:
        recipe = examples["tiny_vggt_recipe"].Recipe()
        first = {recipe.lesson(0.0, step) for step in range(100)}
        last = {recipe.lesson(1.0, step) for step in range(300)}
        assert {count for count, _, _ in first} == {2, 3, 4}
        assert {span for _, _, span in first} == {(0.3, 1.0)}
        assert {count for count, _, _ in last} == {2, 3, 4, 6, 8, 12, 16, 24}
        assert {span for _, _, span in last} == {(0.6, 6.0)}
        assert {size for _, size, _ in first} == {size for _, size, _ in last} == set(recipe.image_sizes)

    def test_scenes_of_a_lesson_are_as_the_recipe_says(self, examples) -> None:
        module = examples["tiny_vggt_recipe"]
        recipe = module.Recipe(views_per_step=4800, dense_views_per_step=7)
        step = next(step for step in range(100) if recipe.lesson(1.0, step)[0] == 2)
        (numbers, _, settings, _), views = module.draw_lesson(
            recipe, 1.0, step, torch.Generator().manual_seed(0)
        )
        assert numbers.view.shape[:2] == (2400, 2)
        assert len(views.unique()) == 7
        shares = torch.bincount(settings.path_kind) / 2400
        torch.testing.assert_close(shares, torch.tensor(recipe.path_kinds), rtol=0, atol=0.05)
        indoors = settings.path_kind != CameraPath.ARC
        assert not settings.furnished[~indoors].any()
        assert settings.furnished[indoors].float().mean().item() == pytest.approx(recipe.furnished, abs=0.05)
        for drawn, (low, high) in (
            (settings.orbit_span, (0.6, 6.0)),
            (settings.field_of_view[~indoors], recipe.fields_of_view[0]),
            (settings.field_of_view[indoors], recipe.fields_of_view[1]),
        ):
            assert low <= drawn.min() < low + 0.05 * (high - low)
            assert high - 0.05 * (high - low) < drawn.max() < high

    def test_truth_is_normalised(self, examples) -> None:
        numbers = draw_numbers(3, 2, torch.Generator().manual_seed(0))
        batch = examples["tiny_vggt_recipe"].normalise(render_scenes(numbers, (12, 16)))
        torch.testing.assert_close(batch.extrinsics[:, 0], torch.eye(3, 4).expand(3, 3, 4), rtol=0, atol=1e-5)
        distance, known = batch.points.norm(dim=-1), batch.depth > 0
        for scene in range(3):
            assert distance[scene][known[scene]].mean().item() == pytest.approx(1, rel=1e-4)
        torch.testing.assert_close(batch.points[:, 0, ..., 2], batch.depth[:, 0], rtol=1e-4, atol=1e-5)

    def test_camera_loss(self, examples) -> None:
        camera_loss = examples["tiny_vggt_recipe"].camera_loss
        truth = torch.tensor([[[1.0, 2, 3, 0, 0, 0, 1, 0.8, 0.9]]])
        turned = truth * torch.tensor([1, 1, 1, -1, -1, -1, -1, 1, 1])
        assert camera_loss([truth, turned], truth)["camera"] == 0  # one view has no pairs
        shifted = truth + torch.tensor([0.3, 0, 0, 0, 0, 0, 0, 0.2, 0.2])
        # 0.3 / 3 for the translation and half of 0.2 for the fields of view; the earlier pose counts 0.6
        assert camera_loss([truth, shifted], truth)["camera"].item() == pytest.approx(0.2)
        assert camera_loss([shifted, truth], truth)["camera"].item() == pytest.approx(0.12)

    def test_pairs_know_no_world(self, examples) -> None:
        """Moving and turning the world changes no pair; moving one camera changes the pairs with it."""
        pair_error = examples["tiny_vggt_recipe"].pair_error
        generator = torch.Generator().manual_seed(0)
        rotation = quaternion_to_rotation(torch.rand(2, 3, 4, generator=generator))
        position = 3 * torch.rand(2, 3, 3, 1, generator=generator)
        turn, shift = quaternion_to_rotation(torch.rand(4, generator=generator)), torch.ones(3, 1)
        moved = torch.cat([rotation @ turn, rotation @ shift + position], -1)
        lens = torch.eye(3).expand(2, 3, 3, 3)
        truth = encode_pose(torch.cat([rotation, position], -1), lens, (2, 2))
        assert pair_error(truth, truth) < 2e-3
        assert pair_error(encode_pose(moved, lens, (2, 2)), truth) < 2e-3
        near = torch.zeros(1, 2, 9)
        near[..., 6], near[0, 1, 0] = 1.0, 0.1  # two cameras side by side, at a distance of 0.1
        opposite = near * torch.tensor([-1, 1, 1, 1, 1, 1, 1, 1, 1])
        assert pair_error(opposite, near).item() == pytest.approx(0.2 / 0.2, rel=1e-2)
        turned = near.clone()
        turned[0, 1, 5:7] = torch.tensor([math.sin(0.1), math.cos(0.1)])
        # By 0.2 radians around its axis, and so it stands 0.02 beside where the first one sees it.
        assert pair_error(turned, near).item() == pytest.approx(0.2 + 0.1 / 2, rel=1e-2)

    def test_confident_distance(self, examples) -> None:
        distance, confidence = torch.tensor([1.0, 3.0, 50.0]), torch.tensor([1.0, 2.0, 9.0])
        known = torch.tensor([True, True, False])
        loss, plain = examples["tiny_vggt_recipe"].confident_distance(distance, confidence, known)
        assert loss.item() == pytest.approx((1 + 6 - 0.2 * math.log(2) + 0.2 * math.log(9)) / 2)
        assert plain.item() == 2

    def test_blur_and_noise(self, examples, monkeypatch) -> None:
        monkeypatch.setattr(examples["scene_looks"], "CHANGED", 0.0)
        for look in ("expose_each", "shade_each"):
            monkeypatch.setattr(examples["tiny_vggt_recipe"], look, lambda images, _: images)
        recipe, generator = examples["tiny_vggt_recipe"], torch.Generator().manual_seed(0)
        numbers = draw_numbers(6, 2, generator)
        clean = render_scenes(numbers, (12, 16)).images
        taken = recipe.make_batch(numbers, (12, 16), settings_of(numbers), generator).images
        assert taken.min() >= 0
        assert taken.max() <= 1
        spread = (taken - clean).square().mean((1, 2, 3, 4)).sqrt()
        assert (spread > 0).all()
        assert spread.max() > 2 * spread.min()  # some scenes have more than others
        # The brightness of a scene stays as it is.
        assert ((taken - clean).mean((1, 2, 3, 4)).abs() < 0.02).all()

    def test_look_belongs_to_a_scene(self, examples) -> None:
        """Some scenes keep theirs exactly; in the others, a photo that is there twice looks alike twice."""
        recipe, generator = examples["tiny_vggt_recipe"], torch.Generator().manual_seed(0)
        once = recipe.normalise(render_scenes(draw_numbers(200, 1, generator), (6, 8)))
        twice = recipe.Batch(*(torch.cat([part, part], 1) for part in once))
        looks = examples["scene_looks"]
        changed = looks.change_look(twice.images, twice.points, twice.depth > 0, generator)
        own = (changed == twice.images).flatten(1).all(1)
        assert own.float().mean().item() == pytest.approx(1 - looks.CHANGED, abs=0.1)
        assert torch.equal(changed[:, 0], changed[:, 1])
        assert changed.min() >= 0
        assert changed.max() <= 1

    @pytest.mark.parametrize(
        ("module", "change", "brightest", "plain_share"),
        [
            ("solid_texture", "add_detail", 1, 0.25),
            ("scene_looks", "light_unevenly", 0.5 * math.exp(2.4), 0.5),
        ],
    )
    def test_look_hangs_on_points(
        self, module: str, change: str, brightest: float, plain_share: float, examples
    ) -> None:
        """Two photos of the same points, in other places of the picture, show them in the same colours."""
        generator = torch.Generator().manual_seed(0)
        points = torch.rand(200, 1, 9, 10, 3, generator=generator).repeat(1, 2, 1, 1, 1)
        points[:, 1] = points[:, 1].flip(1)
        known = torch.ones(200, 2, 9, 10) > 0
        known[:, :, 4] = False
        grey = torch.full((200, 2, 3, 9, 10), 0.5)
        seen = getattr(examples[module], change)(grey, points, known, generator)
        torch.testing.assert_close(seen[:, 1], seen[:, 0].flip(2))
        assert (seen[:, :, :, 4] == 0.5).all()
        plain = (seen == grey).flatten(1).all(1)
        assert plain.float().mean().item() == pytest.approx(plain_share, abs=0.1)
        assert seen.min() >= 0
        assert seen.max() <= brightest
        assert (seen[~plain].std((1, 2, 3, 4)) > 0).all()

    def test_random_filter(self, examples) -> None:
        """Half of the scenes stay; in the others, edges stay in place, and each channel's mean and spread."""
        photos = torch.full((32, 2, 3, 9, 10), 0.2)
        photos[..., 5:] = torch.tensor([0.8, 0.6, 0.4])[:, None, None]
        photos[:, 1, :, 6:] = 0
        filtered = examples["scene_looks"].filter_randomly(photos, torch.Generator().manual_seed(0))
        plain = ((filtered - photos).abs() < 1e-5).flatten(1).all(1)
        assert 8 < plain.sum() < 24
        torch.testing.assert_close(filtered[:, 0, :, :5], filtered[:, 1, :, :5])
        over_scene = (1, 3, 4)
        torch.testing.assert_close(filtered.mean(over_scene), photos.mean(over_scene))
        torch.testing.assert_close(filtered.std(over_scene), photos.std(over_scene))
        step = filtered.diff(dim=-1).abs().amax((0, 1, 2, 3))
        assert (step[3:6] > 0.05).all()  # a filter of width 3 reaches one pixel to either side
        assert (step[:3] < 1e-5).all()
        assert (step[6:] < 1e-5).all()

    def test_contrast(self, examples) -> None:
        """Equal pixels of a scene stay equal, whatever else their photos show; a flat scene stays."""
        change_contrast = examples["scene_looks"].change_contrast
        generator = torch.Generator().manual_seed(0)
        photos = torch.rand(16, 1, 3, 9, 10, generator=generator).repeat(1, 2, 1, 1, 1)
        photos[:, 1, :, 6:] = 0
        hard = change_contrast(photos, generator)
        assert torch.equal(hard[:, 0, :, :6], hard[:, 1, :, :6])
        assert hard.min() == 0
        assert hard.max() == 1
        dull, over_scene = 0.4 + 0.2 * photos, (1, 3, 4)
        changed = change_contrast(dull, generator)
        torch.testing.assert_close(changed.mean(over_scene), dull.mean(over_scene))
        gain = changed.std(over_scene) / dull.std(over_scene)
        assert 0.599 < gain.min() < 0.9
        assert 1.5 < gain.max() < 2.201
        flat = torch.full((16, 2, 3, 9, 10), 0.3)
        torch.testing.assert_close(change_contrast(flat, generator), flat)

    def test_saturation(self, examples) -> None:
        """Brightness stays; some scenes turn grey, others get more colour than they had."""
        generator = torch.Generator().manual_seed(0)
        photos = 0.3 + 0.2 * torch.rand(64, 2, 3, 9, 10, generator=generator)
        changed = examples["scene_looks"].change_saturation(photos, generator)
        torch.testing.assert_close(changed.mean(2), photos.mean(2))
        share = changed.std(2).mean((1, 2, 3)) / photos.std(2).mean((1, 2, 3))
        assert 10 < (share < 1e-5).sum() < 32
        assert 1.1 < share.max() < 1.201

    def test_each_photo_has_its_exposure(self, examples) -> None:
        """One factor for each channel of a photo; factors of a scene differ, in some scenes more."""
        photos = torch.full((64, 8, 3, 2, 3), 0.1)
        factor = examples["scene_looks"].expose_each(photos, torch.Generator().manual_seed(0)) / photos
        assert torch.equal(factor, factor[..., :1, :1].expand_as(factor))
        logarithm = factor[..., 0, 0].log()
        exposure = logarithm.mean(2)
        balance = logarithm - exposure[:, :, None]
        assert 0.25 < exposure.std(1).max() < 0.6
        assert exposure.std(1).min() < 0.05
        assert 0.08 < balance.square().mean((1, 2)).sqrt().max() < 0.25

    def test_each_photo_has_its_shades(self, examples) -> None:
        """Smooth light on all channels alike, other light in each photo, in half of the scenes none."""
        photos = torch.full((64, 3, 3, 18, 28), 0.1)
        factor = examples["scene_looks"].shade_each(photos, torch.Generator().manual_seed(0)) / photos
        assert torch.equal(factor, factor[:, :, :1].expand_as(factor))
        logarithm = factor[:, :, 0].log()
        spread = logarithm.square().mean((1, 2, 3)).sqrt()
        assert (spread == 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
        assert 0.3 < spread.max() < 0.7
        shaded = logarithm[spread > 0.1]
        steps = shaded.diff(dim=-1).square().mean().sqrt()
        assert steps < 0.5 * shaded.square().mean().sqrt()
        assert (shaded[:, 0] - shaded[:, 1]).square().mean() > shaded.square().mean()


class TestSolidTexture:
    def test_leaves_of_all_sizes(self, examples) -> None:
        texture = examples["solid_texture"]
        volume = texture.dead_leaves(torch.device("cpu")).view(*[texture.SIDE] * 3, 3)
        bare = (volume == 0.5).all(-1).float().mean()
        assert bare < 0.3
        # Neighbours mostly belong to one leaf, also beyond the edge, where the volume begins again.
        edge = (volume[-1] == volume[0]).all(-1).float().mean()
        inside = (volume[1:] == volume[:-1]).all(-1).float().mean()
        assert 0.6 < inside < 0.9
        assert edge.item() == pytest.approx(inside.item(), abs=0.1)
        far = (volume[20:] == volume[:-20]).all(-1) & (volume[20:] != 0.5).any(-1)
        assert far.any()  # some leaves are as large as that

    def test_some_places_have_no_detail(self, examples) -> None:
        generator = torch.Generator().manual_seed(0)
        points = torch.rand(40, 1, 30, 40, 3, generator=generator)
        grey = torch.full((40, 1, 3, 30, 40), 0.5)
        seen = examples["solid_texture"].add_detail(grey, points, torch.ones(40, 1, 30, 40) > 0, generator)
        rough = (seen != grey).any(2).float().mean((1, 2, 3))
        assert ((rough > 0.2) & (rough < 0.8)).float().mean() > 0.7  # the others have none at all

    def test_detail_does_not_repeat(self, examples) -> None:
        """The volume begins again after its side, but elsewhere in it; far places are as different as any."""
        texture, generator = examples["solid_texture"], torch.Generator().manual_seed(0)
        places = texture.SIDE * (4 * torch.rand(1, 1, 40, 50, 3, generator=generator) - 2)
        grey = torch.full((1, 1, 3, 40, 50), 0.5)
        here = texture.carve(grey, places, 1.0)
        assert torch.equal(here, texture.carve(grey, places, 1.0))
        others = texture.carve(grey, places.roll(1, 2), 1.0)
        unlike = (here - others).abs().mean()
        for axis in range(3):
            ahead = texture.carve(grey, places + texture.SIDE * torch.eye(3)[axis], 1.0)
            assert (here - ahead).abs().mean() > 0.8 * unlike
