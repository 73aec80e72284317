"""What all datasets share: draws by seed, unusable views, and the scene that views make."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from hess_plugin.datasets import DATASETS, Dataset, PhotoDataset, UnusableView, View, open_dataset
from hess_plugin.datasets.base import draw, resize_view, stack_views
from hess_plugin.errors import InputError

SIZES = {"image_width": 8, "patch_size": 4}


def make_view(value: int, depth: float | None = 1.0, size: tuple[int, int] = (6, 8)) -> View:
    known = None if depth is None else np.full(size, depth)
    return View(np.full((*size, 3), value, np.uint8), np.eye(4)[:3] * (1 + value), np.eye(3), known)


class Toy(PhotoDataset):
    """Scenes "a", "b", ... of ten views each; view n is of grey 10 n; `black` ones cannot be used."""

    name = "toy"

    def __init__(self, scenes: str = "abcdefgh", black: tuple[str, ...] = (), **sizes: int) -> None:
        super().__init__(**(SIZES | sizes))
        self.scenes, self.black, self.read = scenes, black, []
        self.skipped["z"] = "it is broken"

    def scene_ids(self) -> list[str]:
        return sorted(self.scenes)

    def view_ids(self, scene_id: str) -> list[str]:
        return [str(number) for number in range(10)]

    def read_view(self, scene_id: str, view_id: str) -> View:
        self.read.append(view_id)
        if view_id in self.black:
            raise UnusableView("it is black")
        return make_view(10 * int(view_id))


class TestChoose:
    def test_sorted_seeded_and_all_of_few(self) -> None:
        toy = Toy()
        drawn = toy.choose(3, seed=0)
        assert drawn == sorted(drawn) == toy.choose(3, seed=0)
        assert len(set(drawn)) == 3
        assert len({tuple(toy.choose(3, seed)) for seed in range(20)}) > 10
        assert toy.choose(99, seed=0) == toy.scene_ids()

    def test_a_larger_draw_holds_the_smaller(self) -> None:
        draws = [set(Toy().choose(count, seed=3)) for count in range(9)]
        assert all(small < large for small, large in pairwise(draws))

    def test_a_missing_scene_changes_no_other(self) -> None:
        whole = Toy().choose(3, seed=0)
        left = "".join(each for each in "abcdefgh" if each != whole[0])
        assert set(whole[1:]) < set(Toy(left).choose(3, seed=0))

    def test_every_order_comes_up(self) -> None:
        orders = [tuple(draw(["x", "y", "z"], seed)) for seed in range(600)]
        assert len(set(orders)) == 6
        assert min(orders.count(order) for order in set(orders)) > 60


class TestLoad:
    def test_order_is_the_draw(self) -> None:
        toy = Toy()
        scene = toy.load("a", 4, seed=0)
        assert scene.name == "a"
        assert list(scene.view_ids) == toy.read == draw(toy.view_ids("a"), 0, "toy", "a")[:4]
        grey = (scene.images[:, 0, 0, 0] * 255).round().int().tolist()
        assert grey == [10 * int(view_id) for view_id in scene.view_ids]
        assert scene.extrinsics[:, 0, 0].tolist() == [1 + value for value in grey]
        assert scene.images.shape == (4, 3, 8, 8)
        assert scene.unusable_views == {}

    def test_seed_and_scene_decide(self) -> None:
        views = {(scene, seed): Toy().load(scene, 5, seed).view_ids for scene in "abc" for seed in range(3)}
        assert len(set(views.values())) == 9
        assert Toy("a").load("a", 5, 1).view_ids == views["a", 1]  # other scenes change nothing
        assert Toy().load("a", 3, 1).view_ids == views["a", 1][:3]

    def test_all_views(self) -> None:
        assert sorted(Toy().load("a", None, 0).view_ids) == Toy().view_ids("a")

    def test_unusable_views_are_passed_over(self) -> None:
        order = draw(Toy().view_ids("a"), 0, "toy", "a")
        toy = Toy(black=(order[0], order[2]))
        scene = toy.load("a", 3, seed=0)
        assert scene.view_ids == (order[1], order[3], order[4])
        assert scene.unusable_views == {order[0]: "it is black", order[2]: "it is black"}
        assert len(toy.load("a", None, seed=0).images) == 8

    def test_too_few(self) -> None:
        black = tuple(str(number) for number in range(8))
        message = r"scene 'a' of toy has 2 usable views of 10, 3 are needed; \d: it is black\.$"
        with pytest.raises(InputError, match=message):
            Toy(black=black).load("a", 3, seed=0)
        with pytest.raises(InputError, match=r"has 10 usable views of 10, 11 are needed\.$"):
            Toy().load("a", 11, seed=0)
        with pytest.raises(InputError, match="has 0 usable views of 10, 1 are needed"):
            Toy(black=(*black, "8", "9")).load("a", None, seed=0)

    def test_bad_input(self) -> None:
        with pytest.raises(InputError, match="toy has no scene 'y'"):
            Toy().load("y", 1, 0)
        with pytest.raises(InputError, match="scene 'z' of toy cannot be used: it is broken"):
            Toy().load("z", 1, 0)
        with pytest.raises(InputError, match="num_views must be at least 1, got 0"):
            Toy().load("a", 0, 0)
        with pytest.raises(InputError, match="multiple of the patch size 4, got 10"):
            Toy(image_width=10)
        with pytest.raises(InputError, match="min_views must be at least 1, got 0"):
            Toy(min_views=0)


class TestStack:
    def test_depth_only_where_known(self) -> None:
        scene = stack_views("s", {"x": make_view(1, depth=None), "y": make_view(2, depth=3.0)})
        assert scene.depth[:, 0, 0].tolist() == [0, 3]
        assert scene.mask.flatten(1).all(1).tolist() == [False, True]
        blind = stack_views("s", {"x": make_view(1, depth=None)})
        assert blind.depth is None
        assert not blind.has_ground_truth

    def test_cloud(self) -> None:
        scene = stack_views("s", {"x": make_view(1)}, np.array([[1.0, 2, 3]]))
        assert scene.cloud.dtype == torch.float32
        assert scene.cloud.tolist() == [[1, 2, 3]]

    def test_one_aspect_but_not_one_size(self) -> None:
        """A photo of twice the size is the same after resizing; one of another aspect is refused."""
        views = {
            name: resize_view(make_view(1, size=size), 8, 4)
            for name, size in (("x", (6, 8)), ("y", (12, 16)), ("z", (16, 8)), ("w", (2, 8)))
        }
        assert stack_views("s", {name: views[name] for name in "xyz"}).images.shape == (3, 3, 8, 8)
        with pytest.raises(InputError, match=r"scene 's': view 'w' has 8 x 4 pixels .* view 'x' 8 x 8"):
            stack_views("s", views)


class TestOpen:
    def test_every_name_opens_its_class(self, tmp_path: Path) -> None:
        assert set(DATASETS) == {"synthetic", "folder", "co3d", "dtu"}
        for name in DATASETS:
            if name != "synthetic":
                with pytest.raises(InputError, match=str(tmp_path)):
                    open_dataset(name, root=tmp_path, **SIZES)
        dataset = open_dataset("synthetic", root=None, **SIZES)
        assert isinstance(dataset, Dataset)
        assert dataset.name == "synthetic"
        assert json.loads(json.dumps(dataset.settings)) == dataset.settings

    @pytest.mark.parametrize(
        ("name", "root", "message"),
        [
            ("imagenet", None, "unknown dataset 'imagenet'; known: synthetic, folder, co3d, dtu"),
            ("co3d", None, "dataset 'co3d' needs a root"),
            ("synthetic", Path("/x"), "a root was given for 'synthetic', which has none"),
        ],
    )
    def test_bad_names_and_roots(self, name: str, root: Path | None, message: str) -> None:
        with pytest.raises(InputError, match=message):
            open_dataset(name, root=root, **SIZES)
