"""HeSSConfig and CalibrationConfig: frozen, checked, unknown keys refused."""

from __future__ import annotations

import dataclasses

import pytest

from hess_plugin.config import CalibrationConfig, HeSSConfig


def test_defaults_follow_the_paper() -> None:
    assert (HeSSConfig().sparse_ratio, HeSSConfig().cdf_threshold) == (0.5, 0.9)  # Table 2
    calibration = CalibrationConfig()
    assert (calibration.num_scenes, calibration.num_views) == (40, 20)  # appendix C
    assert calibration.inlier_radius**2 == pytest.approx(0.05)  # section 4.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cdf_threshold": 1.4}, r"cdf_threshold must be in \[0, 1\], got 1.4"),
        ({"sparse_ratio": -0.1}, r"sparse_ratio must be in \[0, 1\], got -0.1"),
        ({"sparse_ratio": float("nan")}, r"sparse_ratio must be in \[0, 1\], got nan"),
        ({"sparse_ratio": None}, r"sparse_ratio must be in \[0, 1\], got None"),
        ({"sparse_ratio": "half"}, r"sparse_ratio must be in \[0, 1\], got 'half'"),
        ({"camera_weight": 2}, r"camera_weight must be in \[0, 1\], got 2"),
        (
            {"allocation": "random"},
            "allocation must be one of hess, uniform, reverse, shuffled; got 'random'",
        ),
        ({"projection": "output"}, "projection must be one of query, key, value; got 'output'"),
        ({"normalization": "max"}, "normalization must be one of sum, linear, softmax, log; got 'max'"),
        ({"cdf_rule": "below"}, "cdf_rule must be one of"),
        ({"backend": "cuda"}, "backend must be one of auto, triton, flex, reference; got 'cuda'"),
        ({"qk_dtype": "fp4"}, "qk_dtype must be one of same, fp8; got 'fp4'"),
        ({"qk_dtype": "fp8", "backend": "flex"}, "needs backend 'triton' or 'auto', got 'flex'"),
        ({"q_block_size": 0}, "q_block_size must be an integer of at least 1, got 0"),
        ({"kv_block_size": 64.0}, "kv_block_size must be an integer"),
        ({"dense_below_tokens": -1}, "dense_below_tokens must be an integer of at least 0"),
        ({"dense_below_tokens": "always"}, "dense_below_tokens must be an integer of at least 0"),
        ({"surplus": "keep"}, "surplus must be one of redistribute, drop; got 'keep'"),
        ({"special_keys": "never"}, "special_keys must be one of always, sparse-vggt; got 'never'"),
        ({"special_keys": "sparse-vggt", "q_block_size": 96}, "multiple of kv_block_size, got 96 and 64"),
        ({"shuffle_seed": -1}, "shuffle_seed must be an integer of at least 0"),
        ({"dense_layers": (-1,)}, "dense_layers must be indices"),
        ({"dense_layers": 3}, "dense_layers must be indices of global layers, got 3"),
    ],
)
def test_bad_sparsification_settings(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HeSSConfig(**values)


def test_precision_by_device():
    assert CalibrationConfig().precision_on("cuda") == "bfloat16"
    assert CalibrationConfig().precision_on("cpu") == "float32"
    assert CalibrationConfig(precision="float32").precision_on("cuda") == "float32"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_scenes": 0}, "num_scenes must be an integer of at least 1"),
        ({"inlier_radius": 0.0}, "inlier_radius must be a positive number"),
        ({"inlier_radius": float("inf")}, "inlier_radius must be a positive number"),
        ({"min_confidence_quantile": 1.5}, r"min_confidence_quantile must be in \[0, 1\]"),
        ({"point_source": "mesh"}, "point_source must be one of"),
        ({"seed": True}, "seed must be an integer"),
        ({"precision": "float16"}, "precision must be one of float32, bfloat16; got 'float16'"),
        ({"min_fitness": 1.1}, r"min_fitness must be in \[0, 1\], got 1.1"),
        ({"camera_weight": -1}, r"camera_weight must be in \[0, 1\], got -1"),
        ({"truth": "mesh"}, "truth must be one of depth, cloud; got 'mesh'"),
        ({"neighbors": "kd-tree"}, "neighbors must be one of exact, faiss"),
        ({"icp": "no"}, "icp must be True or False, got 'no'"),
        ({"projections": ("key",)}, r"projections must be 'query' and more of \(.*\), got \('key',\)"),
        ({"projections": ("query", "query")}, "projections must be"),
        ({"projections": ("query", "output")}, "projections must be"),
        ({"projections": "query"}, "projections must be .* got 'query'"),
    ],
)
def test_bad_calibration_settings(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CalibrationConfig(**values)


def test_order_of_projections_is_nothing() -> None:
    """Equal settings are equal, so that they give equal files."""
    chosen = CalibrationConfig(projections=["value", "query"])  # type: ignore[arg-type]
    assert chosen.projections == ("query", "value")
    assert chosen == CalibrationConfig(projections=("query", "value"))
    assert CalibrationConfig().projections == ("query",)  # the paper's choice


def test_unknown_key_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown key 'tau' in HeSSConfig; known: scores, sparse_ratio"):
        HeSSConfig.from_dict({"tau": 0.4})


def test_round_trip_and_frozen() -> None:
    config = HeSSConfig(scores="co3d", sparse_ratio=0.8, cdf_threshold=0.4, dense_layers=[0, 3])  # type: ignore[arg-type]
    assert config.dense_layers == (0, 3)
    assert HeSSConfig.from_dict(dataclasses.asdict(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sparse_ratio = 0.1  # type: ignore[misc]
