"""What is shipped: the small model, its scores and the photos."""

from __future__ import annotations

import warnings

import torch

from hess_plugin.config import HeSSConfig
from hess_plugin.datasets import load_scene, synthetic_scene
from hess_plugin.demo import EMBEDDED_PHOTOS, TEST_SEEDS
from hess_plugin.evaluation.compare import Reference, compare
from hess_plugin.evaluation.predict import predict
from hess_plugin.loading import EMBEDDED_MODEL
from hess_plugin.models import VggtImageProcessor, VggtModel


def test_model_and_scores_belong_together_and_reconstruct() -> None:
    config = HeSSConfig(scores="synthetic", sparse_ratio=0.5, cdf_threshold=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fingerprint that does not fit is a warning
        model, loading = VggtModel.from_pretrained(
            EMBEDDED_MODEL, hess=config, dtype=torch.float32, output_loading_info=True
        )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    info = model.hess.scores.info
    assert (len(info.scene_ids), info.num_views, info.dataset) == (40, 20, "synthetic")

    scene = synthetic_scene(TEST_SEEDS[0], num_views=16)
    reference = Reference.from_scene(scene)
    sparse = compare(predict(model, scene, model.hess), reference)
    model.hess.remove()
    dense = compare(predict(model, scene), reference)
    assert dense["auc_30"] > 0.65
    assert dense["point_error"] < 0.1  # over 96 scenes it is 0.052
    assert 0.65 < sparse["auc_30"] <= dense["auc_30"]


def test_weights_are_small() -> None:
    assert (EMBEDDED_MODEL / "model.safetensors").stat().st_size <= 24e6


def test_photos_fit_the_model() -> None:
    processor = VggtImageProcessor.from_pretrained(EMBEDDED_MODEL)
    scene = load_scene(EMBEDDED_PHOTOS, processor.size, processor.patch_size, max_views=3)
    assert scene.images.shape == (3, 3, 72, 112)
    assert scene.has_ground_truth
