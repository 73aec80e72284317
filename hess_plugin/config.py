"""Settings of sparsification and calibration: frozen, checked at construction, unknown keys refused."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Self

Allocation = Literal["hess", "uniform", "reverse", "shuffled"]
Surplus = Literal["redistribute", "drop"]
SpecialKeys = Literal["always", "sparse-vggt"]
CdfRule = Literal["cover", "sparse-vggt"]
Backend = Literal["auto", "triton", "flex", "reference"]
QkDtype = Literal["same", "fp8"]
PointSource = Literal["point_head", "depth"]
Projection = Literal["query", "key", "value"]
Normalization = Literal["sum", "linear", "softmax", "log"]
Truth = Literal["depth", "cloud"]
Neighbors = Literal["exact", "faiss"]
Precision = Literal["float32", "bfloat16"]

PROJECTIONS: tuple[Projection, ...] = ("query", "key", "value")
NORMALIZATIONS: tuple[Normalization, ...] = ("sum", "linear", "softmax", "log")


def ordered_projections(chosen: Any) -> tuple[Projection, ...]:
    """The chosen projections in the order of `PROJECTIONS`; ValueError unless "query" and others of them."""
    given = chosen if isinstance(chosen, tuple | list) else ()
    ordered = tuple(each for each in PROJECTIONS if each in given)
    if "query" not in given or len(ordered) != len(given):
        raise ValueError(f"projections must be 'query' and more of {PROJECTIONS}, got {chosen!r}.")
    return ordered


class Checked:
    """Base of dataclasses that hold what was given: construction from a dict, checks that name the field."""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a plain dict; raises ValueError naming an unknown key and listing the known ones."""
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in known:
                raise ValueError(f"unknown key {key!r} in {cls.__name__}; known: {', '.join(known)}.")
        return cls(**values)

    def _in_unit_interval(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is None and getattr(type(self), name, 0) is None:  # its default
                continue
            if not (isinstance(value, Real) and 0 <= float(value) <= 1):
                raise ValueError(f"{name} must be in [0, 1], got {value!r}.")

    def _positive_int(self, *names: str, at_least: int = 1) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
                raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}.")

    def _positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 < float(value) < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}.")

    def _layer_indices(self, name: str) -> None:
        """The layers as a tuple; lists are what JSON has."""
        layers = getattr(self, name)
        if not isinstance(layers, tuple | list) or not all(isinstance(n, int) and n >= 0 for n in layers):
            raise ValueError(f"{name} must be indices of global layers, got {layers!r}.")
        object.__setattr__(self, name, tuple(layers))

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}.")


@dataclass(frozen=True)
class HeSSConfig(Checked):
    """How global attention is made sparse. Defaults: the milder setting of the paper's Table 2.

    `density` of a run is measured, not set: with `cdf_threshold=0` it is `1 - sparse_ratio` up to rounding.
    """

    scores: Any = True  # every form that `hess=` accepts: True, alias, repository, path or HeadScores
    sparse_ratio: float = 0.5  # ρ: each row keeps at least ⌊Mk(1-ρ)⌋ blocks; 1 leaves only `cdf_threshold`
    cdf_threshold: float = 0.9  # τ: each row keeps the blocks that cover this probability; 0 leaves only ρ
    allocation: Allocation = "hess"  # "uniform": SparseVGGT; "reverse": the least sensitive head gets most
    shuffle_seed: int = 0  # of "shuffled", in which chance decides which head has which weight
    surplus: Surplus = "redistribute"  # of heads above their capacity (3.3.3); "drop": it is lost (Fig. 10)
    camera_weight: float | None = None  # λ of Eq. 9; None takes the value recommended in the sidecar
    projection: Projection = "query"  # whose sensitivity ranks heads: W_Q, or W_K, W_V (Table 1)
    normalization: Normalization = "sum"  # how traces become weights: Eq. 7 and 8, or an ablation of Table 1
    cdf_rule: CdfRule = "cover"  # "sparse-vggt" stops one block before τ is reached, as the public code does
    special_keys: SpecialKeys = "always"  # "sparse-vggt" leaves those in the last patch block to chance
    q_block_size: int = 128  # patch queries per block
    kv_block_size: int = 64  # patch keys per block
    dense_layers: tuple[int, ...] = ()  # indices among the global layers that stay dense
    dense_below_tokens: int | Literal["auto"] = 0  # shorter ones stay dense; "auto": where dense is faster
    backend: Backend = "auto"  # Triton's kernels on NVIDIA GPUs, "reference" elsewhere; "flex" by name
    qk_dtype: QkDtype = "same"  # "fp8": coarser and faster, Triton on sm_90 and later, without gradients

    def __post_init__(self) -> None:
        self._in_unit_interval("sparse_ratio", "cdf_threshold", "camera_weight")
        self._one_of("allocation", ("hess", "uniform", "reverse", "shuffled"))
        self._one_of("surplus", ("redistribute", "drop"))
        self._one_of("special_keys", ("always", "sparse-vggt"))
        self._one_of("projection", PROJECTIONS)
        self._one_of("normalization", NORMALIZATIONS)
        self._one_of("cdf_rule", ("cover", "sparse-vggt"))
        self._one_of("backend", ("auto", "triton", "flex", "reference"))
        self._one_of("qk_dtype", ("same", "fp8"))
        if self.qk_dtype == "fp8" and self.backend not in ("auto", "triton"):
            raise ValueError(f"qk_dtype='fp8' needs backend 'triton' or 'auto', got {self.backend!r}.")
        self._positive_int("q_block_size", "kv_block_size")
        self._positive_int("shuffle_seed", at_least=0)
        if self.dense_below_tokens != "auto":
            self._positive_int("dense_below_tokens", at_least=0)
        if self.special_keys == "sparse-vggt" and self.q_block_size % self.kv_block_size:
            raise ValueError(
                "special_keys='sparse-vggt' needs a q_block_size that is a multiple of kv_block_size, got "
                f"{self.q_block_size} and {self.kv_block_size}."
            )
        self._layer_indices("dense_layers")


@dataclass(frozen=True)
class CalibrationConfig(Checked):
    """How head sensitivity is measured. Defaults: the paper's section 4.1 and appendix C."""

    num_scenes: int = 40
    num_views: int = 20  # views sampled per scene
    seed: int = 0
    inlier_radius: float = math.sqrt(0.05)  # √ε of Eq. 3, in units of the normalised ground-truth scene
    min_confidence_quantile: float = 0.0  # share of each scene's least confident points that is ignored
    max_points: int = 100_000  # predicted points sampled per scene for the point error
    point_source: PointSource = "point_head"  # or points from depth and camera
    truth: Truth = "depth"  # known points: of the depth maps, or the dataset's own cloud (aligned by FPFH)
    icp: bool = True  # refine the alignment by point-to-plane ICP, as the paper does
    min_fitness: float = 0.7  # share of variance that the alignment must explain; 0 takes untrained models
    neighbors: Neighbors = "exact"  # "faiss": the paper's IVFFlat index, approximate
    projections: tuple[Projection, ...] = ("query",)  # whose traces are kept; the paper needs W_Q alone
    gates: bool = False  # also keep gradients of head gates, by which pruning baselines rank heads
    precision: Precision | None = None  # of the model; None: bfloat16 on a GPU (autocast), else float32
    camera_weight: float | None = None  # λ recommended to users of the scores; None: 0.5, for π³ 0

    def __post_init__(self) -> None:
        self._positive_int("num_scenes", "num_views", "max_points")
        self._positive_int("seed", at_least=0)
        self._in_unit_interval("min_confidence_quantile", "camera_weight", "min_fitness")
        self._positive("inlier_radius")
        self._one_of("point_source", ("point_head", "depth"))
        self._one_of("truth", ("depth", "cloud"))
        self._one_of("neighbors", ("exact", "faiss"))
        if self.precision is not None:
            self._one_of("precision", ("float32", "bfloat16"))
        for name in ("icp", "gates"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        object.__setattr__(self, "projections", ordered_projections(self.projections))

    def precision_on(self, device_type: str) -> Precision:
        """The precision of a model on "cuda", "cpu", ...

        On a GPU float32 gradients of attention that are the same each time are many times slower.
        """
        return self.precision or ("bfloat16" if device_type == "cuda" else "float32")
