"""`hess calibrate` on the datasets' own formats in miniature, and on every kind of model class."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from calibrating import UNTRAINED, calibrate
from co3d_tree import edit_json, write_plain
from doubles import TinyVGGT, tiny_native_pi3, tiny_pi3_sizes
from dtu_tree import views_in_mm, write_pointmap
from hub_server import HubServer
from safetensors.torch import load_file, save_file

from hess_plugin import HeSSConfig, Pi3Model, apply_hess
from hess_plugin.cli import main
from hess_plugin.scores import HeadScores

SIZES = ("--num-scenes", "4", "--num-views", "3", "--max-points", "50")


class TestDatasets:
    def test_co3d(self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        scenes = [each for each in write_plain(tmp_path / "co3d", frames=4) if each.startswith("bench/")]
        more = ("--dataset", "co3d", "--root", str(tmp_path / "co3d"), "--categories", "bench")
        more = (*more, "--with-background", "--min-quality", "0.6")
        low = scenes.pop()

        def lower(records: list[dict]) -> None:
            for record in records:
                if low == f"bench/{record['sequence_name']}":
                    record["viewpoint_quality_score"] = 0.25

        edit_json(tmp_path / "co3d" / "bench" / "sequence_annotations.jgz", lower)
        assert main(calibrate(model, tmp_path / "out", *more, *SIZES, *UNTRAINED)) == 0
        printed = capsys.readouterr().out
        assert "Before scenes were drawn, 1 skipped:\n  1 x its viewpoint quality is 0.25" in printed
        assert f"({low})" in printed
        info = HeadScores.load(tmp_path / "out").info
        assert info.scene_ids == tuple(scenes)
        assert info.dataset_settings["categories"] == ["bench"]
        assert info.dataset_settings["with_background"]
        assert all(len(row) == 3 for row in info.view_ids)
        assert str(tmp_path) not in str(info.dataset_settings)
        more = (*more, "--num-scenes", "2", "--num-views", "5")  # more than there are
        assert main(calibrate(model, tmp_path / "more", *more)) == 2
        assert "co3d has no usable scene, 2 skipped" in capsys.readouterr().err

    def test_dtu(self, model: Path, tmp_path: Path) -> None:
        write_pointmap(tmp_path / "dtu", views_in_mm(3))
        more = ("--dataset", "dtu", "--root", str(tmp_path / "dtu"), "--scans", "1")
        assert main(calibrate(model, tmp_path / "out", *more, *SIZES, *UNTRAINED)) == 0
        assert HeadScores.load(tmp_path / "out").info.scene_ids == ("scan1",)

    def test_damaged_file_is_named(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        damaged = min(write_plain(tmp_path / "co3d", frames=4))
        for photo in (tmp_path / "co3d" / damaged / "images").iterdir():
            photo.write_bytes(photo.read_bytes()[:200])
        more = ("--dataset", "co3d", "--root", str(tmp_path / "co3d"), *SIZES, *UNTRAINED)
        assert main(calibrate(model, tmp_path / "out", *more)) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"1 of 4 scenes failed ({damaged}: " in error
        assert f"{damaged}/images/frame" in error
        assert main(calibrate(model, tmp_path / "out", *more, "--resume", "--skip-failed")) == 0
        assert "3 scenes x 3 views of co3d, 1 skipped:" in capsys.readouterr().out
        config = json.loads((tmp_path / "out" / "hess_config.json").read_text())
        assert list(config["skipped"]) == [damaged]
        assert str(tmp_path) not in str(config)  # it will be published


class TestModels:
    def test_incomplete_checkpoint_is_refused(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        weights = load_file(model / "model.safetensors")
        partial = {name: value for name, value in weights.items() if "global_blocks" not in name}
        save_file(partial, model / "model.safetensors", metadata={"format": "pt"})
        assert main(calibrate(model, tmp_path / "scores", "--dataset", "synthetic")) == 2
        assert "is no VggtModel checkpoint: it lacks" in capsys.readouterr().err

    def test_cut_off_checkpoint_is_named(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-8])
        assert main(calibrate(model, tmp_path / "scores", "--dataset", "synthetic")) == 2
        assert f"hess calibrate: cannot load {model}: " in capsys.readouterr().err

    def test_checkpoint_of_something_else(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        save_file({"bert.weight": torch.ones(1)}, tmp_path / "model.safetensors")
        assert main(calibrate(tmp_path, tmp_path / "scores", "--dataset", "synthetic")) == 2
        error = capsys.readouterr().err
        assert "neither VggtModel nor Pi3Model: it has 1 tensors, 'bert.weight' among them" in error
        (tmp_path / "model.safetensors").unlink()
        assert main(calibrate(tmp_path, tmp_path / "scores", "--dataset", "synthetic")) == 2
        assert "it has no safetensors; name the class" in capsys.readouterr().err

    def test_hub_that_is_not_reached(
        self,
        hub: HubServer,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Not told as a repository without weights, which it may well not be."""
        hub.put("org/empty", {"README.md": b"no weights here"})
        arguments = (Path("org/empty"), tmp_path / "scores", "--dataset", "synthetic")
        with monkeypatch.context() as offline:
            offline.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
            assert main(calibrate(*arguments)) == 2
        assert "cannot load org/empty: We couldn't connect to" in capsys.readouterr().err
        assert main(calibrate(*arguments)) == 2
        assert "it has no safetensors; name the class" in capsys.readouterr().err

    def test_original_class(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A class that users install, with huggingface_hub's mixin."""
        TinyVGGT().save_pretrained(tmp_path / "model")
        more = ("--dataset", "synthetic", "--model-class", "doubles:TinyVGGT", *SIZES, *UNTRAINED)
        assert main(calibrate(tmp_path / "model", tmp_path / "a", *more, "--image-width", "16")) == 0
        assert HeadScores.load(tmp_path / "a").info.backbone == "vggt"
        weights = load_file(tmp_path / "model" / "model.safetensors")
        del weights["aggregator.camera_token"]
        save_file(weights, tmp_path / "model" / "model.safetensors")
        assert main(calibrate(tmp_path / "model", tmp_path / "b", *more)) == 2
        assert "is no TinyVGGT checkpoint: it lacks 1 tensors" in capsys.readouterr().err

    def test_pi3_from_calibration_to_sparse_attention(self, tmp_path: Path) -> None:
        """Random weights, so this shows that every part runs and fits, not that the scores are good."""
        torch.manual_seed(0)
        tiny_native_pi3().save_pretrained(tmp_path / "model")
        with tiny_pi3_sizes():
            arguments = ("--dataset", "synthetic", *SIZES, *UNTRAINED)
            assert main(calibrate(tmp_path / "model", tmp_path / "scores", *arguments)) == 0
            model = Pi3Model.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
        scores = HeadScores.load(tmp_path / "scores")
        info = scores.info
        assert (info.backbone, info.num_layers, info.num_heads, info.camera_weight) == ("pi3", 2, 4, 0.0)
        assert all((trace > 0).all() for trace in scores.scene_traces.values())
        images = torch.rand(1, 3, 3, 64, 64)
        with torch.inference_mode():
            dense = model(images).points
            config = HeSSConfig(sparse_ratio=0.7, cdf_threshold=0.0, q_block_size=16, kv_block_size=16)
            with apply_hess(model, scores, config) as handle:
                sparse = model(images).points
                assert 0.5 < float(handle.stats.sparsity.mean()) < 0.8
            assert torch.isfinite(sparse).all()
            assert not torch.equal(sparse, dense)
            assert torch.equal(model(images).points, dense)
