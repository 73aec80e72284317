"""The main job, on a tiny checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from tiny_checkpoint import save_scores, save_tiny_checkpoint
from torch import nn

from hess_plugin import demo
from hess_plugin.datasets.scene import Scene
from hess_plugin.datasets.synthetic import synthetic_scene
from hess_plugin.demo import DemoSettings, run_demo
from hess_plugin.demo_results import density_notes, format_summary
from hess_plugin.errors import InputError
from hess_plugin.evaluation.predict import Prediction
from hess_plugin.files import written_files
from hess_plugin.geometry.similarity import Similarity
from hess_plugin.plots.point_cloud import move_cameras

VIEWS = 6
NOISE = {"dense": 0.0, "hess": 0.05, "uniform": 0.2}  # world units; see `Oracle`


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos of a synthetic scene, beside files that are none."""
    folder = tmp_path_factory.mktemp("holiday")
    for index, image in enumerate(synthetic_scene(0, 8, image_size=(60, 80)).images):
        pixels = (image.permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(pixels).save(folder / f"{index}.{'JPG' if index % 2 else 'png'}")
    (folder / "notes.txt").write_text("no photo")
    return folder


@pytest.fixture
def settings(checkpoint: Path, photos: Path, tmp_path: Path) -> DemoSettings:
    out = tmp_path / "out"
    return DemoSettings(out=out, images=photos, model=str(checkpoint), views=VIEWS, device="cpu")


class Oracle:
    """In the place of `predict`: ground truth in another world, with a stated error for each method."""

    world = Similarity(torch.tensor(0.2), torch.eye(3)[[1, 2, 0]], torch.tensor([3.0, 2.0, 1.0]))

    def __call__(self, model: nn.Module, scene: Scene, handle: object = None) -> Prediction:
        assert scene.extrinsics is not None
        assert scene.intrinsics is not None
        assert scene.depth is not None
        method = "dense" if handle is None else handle.config.allocation  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(0)
        noise = NOISE[method] * torch.randn(scene.world_points.shape, generator=generator)
        return Prediction(
            scene=scene.name,
            extrinsics=move_cameras(scene.extrinsics, self.world),
            intrinsics=scene.intrinsics,
            points=self.world.apply(scene.world_points + noise),
            depth=scene.depth * self.world.scale,
            confidence=torch.ones_like(scene.depth),
            seconds=1.0,
            density=1.0 if handle is None else 0.5,
        )


@pytest.fixture(scope="module")
def photos_run(
    checkpoint: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict, DemoSettings]:
    out = tmp_path_factory.mktemp("own") / "out"
    settings = DemoSettings(out=out, images=photos, model=str(checkpoint), views=VIEWS, device="cpu")
    return run_demo(settings), settings


@pytest.fixture(scope="module")
def examples_run(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, DemoSettings]:
    out = tmp_path_factory.mktemp("examples") / "out"
    settings = DemoSettings(out=out, model=str(checkpoint), hess="synthetic", views=VIEWS, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "TEST_SEEDS", (5, 8))
        patch.setattr(demo, "predict", Oracle())
        return run_demo(settings), settings


class TestOwnPhotos:
    """One run serves the tests that only read its results."""

    def test_smoke(self, photos_run: tuple[dict, DemoSettings]) -> None:
        summary, _ = photos_run
        (group,) = summary["groups"]
        assert (group["compared_with"], group["views"], group["image_size"]) == ("dense", VIEWS, [48, 64])
        rows = group["mean"]
        assert rows["dense"]["point_error"] == pytest.approx(0, abs=1e-5)
        assert rows["dense"]["auc_30"] == 1.0
        # 6 views of 6 x 8 patches: 5 blocks of 64 keys, half of them is 2, for both methods.
        assert rows["uniform"]["density"] == pytest.approx(2 / 5)
        assert rows["hess"]["density"] == pytest.approx(2 / 5, abs=0.005)
        assert rows["hess"]["point_error"] > 1e-5
        assert rows["hess"]["point_error"] != rows["uniform"]["point_error"]
        assert summary["photos"] == ["0.png", "1.JPG", "3.JPG", "4.png", "6.png", "7.JPG"]

    def test_files(self, photos_run: tuple[dict, DemoSettings]) -> None:
        _, settings = photos_run
        scene = settings.out / settings.images.name  # type: ignore[union-attr]
        stored = json.loads((settings.out / "results.json").read_text())
        assert sorted([*stored["files"], "results.json"]) == written_files(settings.out)
        assert {"torch", "python", "hess-plugin"} <= stored["versions"].keys()
        assert stored["settings"]["density"] == 0.5
        for method in demo.METHODS:
            cloud = trimesh.load(scene / f"points_{method}.ply")
            assert 0 < len(cloud.vertices) <= 0.8 * VIEWS * 48 * 64 + 1
            assert len(trimesh.load(scene / f"cameras_{method}.ply").faces) == VIEWS * 6
            cameras = json.loads((scene / f"cameras_{method}.json").read_text())
            assert len(cameras["views"]) == VIEWS
            assert len(trimesh.load(scene / f"scene_{method}.glb").geometry) == 2
        assert not list(scene.glob("*ground_truth*"))
        with Image.open(settings.out / "contact_sheet.png") as sheet:
            assert sheet.width == 1600
        assert '"method": "hess"' in (settings.out / "index.html").read_text()  # see tests/viewer

    def test_table_has_no_accuracy(self, photos_run: tuple[dict, DemoSettings]) -> None:
        text = format_summary(photos_run[0])
        assert "against dense" in text
        assert "AUC" not in text

    def test_known_cameras_are_used(self, settings: DemoSettings) -> None:
        folder = replace(settings, images=demo.EMBEDDED_PHOTOS, views=4)
        (scene,) = demo.load_scenes(folder, demo.pick_photos(folder), demo.load_processor(folder.model))
        assert scene.has_ground_truth
        assert scene.images.shape == (4, 3, 40, 64)

    def test_photos_of_mixed_sizes(self, settings: DemoSettings, photos: Path, tmp_path: Path) -> None:
        for name, size in (("a.png", (80, 60)), ("b.png", (60, 80)), ("c.png", (33, 33))):
            Image.new("RGB", size).save(tmp_path / name)
        mixed = replace(settings, images=tmp_path)
        (scene,) = demo.load_scenes(mixed, demo.pick_photos(mixed), demo.load_processor(mixed.model))
        assert scene.images.shape == (3, 3, 64, 64)

    def test_model_is_dense_again_between_methods(self, settings: DemoSettings) -> None:
        """Dense last or first must be the same: nothing of a sparse pass may stay in the model."""
        model, scores = demo.load_model(settings)
        scene = demo.load_scenes(settings, demo.pick_photos(settings), demo.load_processor(settings.model))[0]
        first = demo.predict(model, scene)
        demo.reconstruct(model, scores, [scene], 0.3)
        assert torch.equal(demo.predict(model, scene).points, first.points)
        assert not hasattr(model, "hess")


class TestExamples:
    """The scenes of a run without `images`, with predictions whose errors are known."""

    def test_numbers(self, examples_run: tuple[dict, DemoSettings]) -> None:
        summary, _ = examples_run
        assert [group["kind"] for group in summary["groups"]] == ["synthetic", "hololens_office"]
        for group in summary["groups"]:
            assert group["compared_with"] == "ground truth"
            rows = group["mean"]
            assert (
                rows["dense"]["point_error"]
                < 1e-4
                < rows["hess"]["point_error"]
                < rows["uniform"]["point_error"]
            )
            assert rows["dense"]["auc_30"] == 1.0
            for method in demo.METHODS:
                mean = np.mean([scene[method]["point_error"] for scene in group["scenes"].values()])
                assert rows[method]["point_error"] == pytest.approx(mean)
        assert len(summary["groups"][0]["scenes"]) == 2

    def test_table(self, examples_run: tuple[dict, DemoSettings]) -> None:
        lines = format_summary(examples_run[0]).splitlines()
        assert lines[0] == "synthetic: mean of 2 scenes, 6 views of 64 x 64 pixels, against ground truth"
        assert lines[1].split() == ["AUC@30", "ATE", "point", "error", "density", "seconds"]
        assert [line.split()[0] for line in lines[2:5]] == ["Dense", "Uniform", "HeSS"]
        assert lines[2].split()[1:4] == ["1.000", "0.0000", "0.0000"]

    def test_everything_lies_in_the_world_of_ground_truth(
        self, examples_run: tuple[dict, DemoSettings]
    ) -> None:
        _, settings = examples_run
        folder = settings.out / "synthetic-5"
        scene = synthetic_scene(5, VIEWS, image_size=64)
        assert scene.extrinsics is not None
        truth = trimesh.load(folder / "points_ground_truth.ply")
        assert len(truth.vertices) == int(scene.mask.sum())
        dense = torch.tensor(trimesh.load(folder / "points_dense.ply").vertices, dtype=torch.float32)
        known = scene.world_points[scene.mask]
        assert torch.cdist(dense[::50].double(), known.double()).min(dim=1).values.max() < 1e-3
        views = json.loads((folder / "cameras_hess.json").read_text())["views"]
        found = torch.tensor([view["world_to_camera"] for view in views])
        torch.testing.assert_close(found, scene.extrinsics, atol=0.03, rtol=0)


class TestDensity:
    def test_gap_is_said(self) -> None:
        rows = {"uniform": {"density": 0.50}, "hess": {"density": 0.51}}
        (note,) = density_notes([{"kind": "synthetic", "mean": rows}])
        assert "differ by more than 0.5%" in note
        assert "uniform 0.5000, HeSS 0.5100" in note

    def test_equal_densities_need_no_words(self) -> None:
        rows = {"uniform": {"density": 0.50}, "hess": {"density": 0.503}}
        assert density_notes([{"kind": "synthetic", "mean": rows}]) == []

    def test_full_density_is_dense(self, settings: DemoSettings) -> None:
        rows = run_demo(replace(settings, density=1.0))["groups"][0]["mean"]
        assert rows["hess"]["density"] == 1.0
        assert rows["hess"]["point_error"] < 1e-4


class TestBadInput:
    """Each is one line, and earlier results stay."""

    @pytest.fixture(autouse=True)
    def earlier_results(self, settings: DemoSettings):  # type: ignore[no-untyped-def]
        settings.out.mkdir()
        (settings.out / "results.json").write_text('{"files": []}')
        yield
        assert written_files(settings.out) == ["results.json"]
        assert [path.name for path in settings.out.parent.iterdir() if path.name.startswith(".")] == []

    def fails(self, settings: DemoSettings, match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            run_demo(settings)
        assert "\n" not in str(caught.value)

    def test_no_images(self, settings: DemoSettings, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        self.fails(
            replace(settings, images=tmp_path / "empty"), r"no photos in .*empty.* known endings: .bmp"
        )
        Image.new("RGB", (8, 8)).save(tmp_path / "empty" / "one.png")
        self.fails(replace(settings, images=tmp_path / "empty"), "holds 1 photos; at least 3 are needed")

    def test_no_folder(self, settings: DemoSettings, tmp_path: Path) -> None:
        self.fails(replace(settings, images=tmp_path / "nowhere"), "there is no folder .*nowhere")

    def test_one_unreadable_image(self, settings: DemoSettings, photos: Path, tmp_path: Path) -> None:
        for photo in photos.iterdir():
            (tmp_path / photo.name).write_bytes(photo.read_bytes())
        (tmp_path / "4.png").write_bytes(b"\x89PNG and then nothing")
        self.fails(replace(settings, images=tmp_path), "cannot read image .*4.png")

    def test_unfit_scores(self, settings: DemoSettings, tmp_path: Path) -> None:
        other = save_scores(tmp_path / "other", num_heads=8)
        self.fails(replace(settings, hess=other), "scores are for vggt with 2 layers x 8 heads")

    def test_broken_scores(self, settings: DemoSettings, tmp_path: Path) -> None:
        broken = save_scores(tmp_path / "broken")
        (broken / "hess_scores.safetensors").write_bytes(b"half a file")
        self.fails(replace(settings, hess=broken), "hess_scores.safetensors: ")

    def test_unknown_scores(self, settings: DemoSettings) -> None:
        self.fails(replace(settings, hess="co3d"), "no HeSS scores for hess='co3d'.*available: synthetic")

    def test_unknown_model(self, settings: DemoSettings, tmp_path: Path) -> None:
        self.fails(
            replace(settings, model=str(tmp_path / "no_model")), "there is no model folder '.*no_model'"
        )
        self.fails(replace(settings, model="org/no_model"), "org/no_model is not a local folder")

    def test_another_model(self, settings: DemoSettings, checkpoint: Path, tmp_path: Path) -> None:
        """A checkpoint whose weights are not VGGT's must not run with random ones."""
        from safetensors.torch import save_file

        for path in checkpoint.rglob("*"):
            if path.is_file():
                copy = tmp_path / "strange" / path.relative_to(checkpoint)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        save_file(
            {"fc.weight": torch.zeros(2, 2)}, tmp_path / "strange" / "model.safetensors", {"format": "pt"}
        )
        self.fails(replace(settings, model=str(tmp_path / "strange")), "is no VggtModel checkpoint: it lacks")

    def test_unknown_device(self, settings: DemoSettings) -> None:
        self.fails(replace(settings, device="abacus"), "cannot use the device 'abacus'")

    @pytest.mark.parametrize("error", [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ])  # fmt: skip
    def test_too_little_memory(
        self, settings: DemoSettings, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        monkeypatch.setattr(demo, "predict", _raises(error))
        self.fails(settings, r"too little memory on cpu for 6 views .*--views.*--device")

    @pytest.mark.parametrize("module", ["matplotlib", "scipy", "trimesh"])
    def test_missing_extra(
        self, settings: DemoSettings, monkeypatch: pytest.MonkeyPatch, module: str
    ) -> None:
        monkeypatch.setattr(demo, "find_spec", lambda name: None if name == module else object())
        self.fails(settings, rf"needs {module}; pip install .hess-plugin\[demo\]")

    def test_a_bug_is_no_input_error(self, settings: DemoSettings, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(demo, "predict", _raises(RuntimeError("shapes do not match")))
        with pytest.raises(RuntimeError, match="shapes do not match") as caught:
            run_demo(settings)
        assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize(("bad", "match"), [
    ({"density": 0.0}, "density must be above 0 and at most 1, got 0.0"),
    ({"density": 1.01}, "density must be"),
    ({"density": float("nan")}, "density must be"),
    ({"views": 2}, "views must be at least 3"),
])  # fmt: skip
def test_bad_settings(bad: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        DemoSettings(**bad)


def _raises(error: Exception):  # type: ignore[no-untyped-def]
    def function(*args: object) -> None:
        raise error

    return function
