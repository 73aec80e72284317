"""Time and memory of a whole VGGT over the number of views, dense and sparse: what `hess bench` does."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..attention import HeSSAttention
from ..backbones import TokenLayout
from ..config import Backend, HeSSConfig
from ..errors import InputError, input_errors
from ..files import write_atomic
from ..kernels.hess_attention import resolve_backend
from ..models import VggtConfig, VggtModel
from ..models.vggt import NUM_SPECIAL_TOKENS
from ..patch import apply_hess
from .stopwatch import Stopwatch
from .subject import build_model, fastest_sdpa, log_normal_scores, use_sdpa

NUMBERS, PICTURE = "bench.json", "bench.png"
_SHORT_SECONDS = 5.0  # passes that take less are timed a second time


@dataclass(frozen=True)
class BenchSettings:
    """What is measured, and where results go."""

    out: Path = Path("hess-bench")
    views: tuple[int, ...] = (50, 100, 200, 350, 500, 1000)
    dense_views: int = 500  # the dense model is run with at most so many
    density: float = 0.25  # share of blocks that the sparse model attends to
    backend: Backend = "auto"
    height: int = 392  # pixels
    width: int = 518
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")

    def __post_init__(self) -> None:
        if not self.views or min(self.views) < 1:
            raise InputError(f"views must be 1 or more, got {list(self.views)}; set --views.")
        if not 0 < self.density <= 1:
            raise InputError(f"density must be in (0, 1], got {self.density}; set --density.")


@dataclass(frozen=True)
class BenchRecord:
    """One number of views with one kind of attention."""

    views: int
    tokens: int
    attention: str  # "dense" or "sparse"
    seconds: float | None = None  # None: it did not fit
    parts: dict[str, float] = field(default_factory=dict)  # seconds; what is in no part is in `seconds` only
    peak_bytes: int | None = None  # of GPU memory, model and images included
    density: float = 1.0  # measured
    failed: str | None = None


def run_bench(settings: BenchSettings, config: VggtConfig | None = None) -> list[BenchRecord]:
    """Measure everything; results are written after every measurement.

    Writes `bench.json` and, at the end, `bench.png` (needs the extra `demo`) into `settings.out`.

    Args:
        settings: See there.
        config: Of the model; None is VGGT-1B without its track head. Weights are random: neither time nor
            memory depends on them. All but the heads is in bfloat16 on a GPU.

    Raises:
        InputError: a device or a backend that cannot be used, images that are not made of whole patches, a
            folder that cannot be written.
    """
    config = config or VggtConfig(enable_track=False)
    device = _check(settings, config)
    with input_errors(OSError, prefix=f"cannot write to {settings.out}: "):
        settings.out.mkdir(parents=True, exist_ok=True)
    model = build_model(config, device)
    sdpa = fastest_sdpa(device)
    runs = [(views, kind) for views in sorted(settings.views) for kind in ("dense", "sparse")]
    runs = [(views, kind) for views, kind in runs if kind == "sparse" or views <= settings.dense_views]
    records: list[BenchRecord] = []
    if device.type == "cuda":  # the first pass of a process loads libraries, for which one view is enough
        _timed_pass(model, torch.rand(1, 3, settings.height, settings.width, device=device), sdpa)
    for views, kind in tqdm(runs, unit="run", disable=None):
        records.append(_measure(model, views, kind, settings, sdpa))
        _write(settings, records, sdpa)
        tqdm.write(line(records[-1]))
    from ..plots.figure import save
    from ..plots.growth import draw_growth

    with input_errors(ImportError, OSError, prefix=f"cannot draw {PICTURE}: "):
        save(draw_growth([vars(record) for record in records]), settings.out / PICTURE)
    return records


def _check(settings: BenchSettings, config: VggtConfig) -> torch.device:
    """The device; InputError where the settings cannot work, before anything is made."""
    patch = config.patch_size
    if settings.height % patch or settings.width % patch:
        raise InputError(
            f"height and width must be multiples of the patch size {patch}, got {settings.height} x "
            f"{settings.width}; set --height and --width."
        )
    sparse, dim = _sparse_config(settings), config.embed_dim // config.num_heads
    with input_errors(RuntimeError, ValueError):
        device = torch.device(settings.device)
        resolve_backend(
            settings.backend, device, torch.bfloat16, dim, sparse.q_block_size, sparse.kv_block_size
        )
    return device


def _measure(model: VggtModel, views: int, kind: str, settings: BenchSettings, sdpa: str) -> BenchRecord:
    device = torch.device(settings.device)
    grid = (settings.height // model.config.patch_size, settings.width // model.config.patch_size)
    record = {"views": views, "tokens": views * (grid[0] * grid[1] + NUM_SPECIAL_TOKENS), "attention": kind}
    handle = None
    try:
        if kind == "sparse":
            handle = apply_hess(model, log_normal_scores(model), _sparse_config(settings))
        if device.type == "cuda":
            _warm_up(model, views, grid, sdpa)
        images = torch.rand(views, 3, settings.height, settings.width, device=device)
        seconds, parts, peak = _timed_pass(model, images, sdpa)
        if seconds < _SHORT_SECONDS and device.type == "cuda":
            seconds, parts, peak = _timed_pass(model, images, sdpa)
        density = 1.0 if handle is None else float(handle.stats.density.mean())
        return BenchRecord(**record, seconds=seconds, parts=parts, peak_bytes=peak, density=density)
    except torch.OutOfMemoryError as error:
        return BenchRecord(**record, failed=str(error).splitlines()[0])
    finally:
        if handle is not None:
            handle.remove()
        if device.type == "cuda":
            torch.cuda.empty_cache()


@torch.inference_mode()
def _warm_up(model: VggtModel, views: int, grid: tuple[int, int], sdpa: str) -> None:
    """One sparse layer at a length for which kernels may have to be compiled: a 24th of a pass."""
    sparse = next((module for module in model.modules() if isinstance(module, HeSSAttention)), None)
    if sparse is not None:
        layout = TokenLayout(views, NUM_SPECIAL_TOKENS, grid)
        heads = model.config.num_heads
        shape = (1, heads, layout.num_tokens, model.config.embed_dim // heads)
        q = torch.randn(shape, device=model.device, dtype=next(sparse.parameters()).dtype)
        with use_sdpa(sdpa):
            sparse.processor(q, q, q, layout)


@torch.inference_mode()
def _timed_pass(model: VggtModel, images: Tensor, sdpa: str) -> tuple[float, dict[str, float], int | None]:
    watch, cuda = Stopwatch(images.device), images.is_cuda
    if cuda:
        torch.cuda.reset_peak_memory_stats(images.device)
    with use_sdpa(sdpa), watch.watch(model), watch.span("total"):
        model(images)
    parts = watch.seconds()
    peak = torch.cuda.max_memory_allocated(images.device) if cuda else None
    return parts.pop("total"), parts, peak


def _sparse_config(settings: BenchSettings) -> HeSSConfig:
    ratio = 1 - settings.density
    return HeSSConfig(
        sparse_ratio=ratio, cdf_threshold=0, backend=settings.backend, dense_below_tokens="auto"
    )


def _write(settings: BenchSettings, records: list[BenchRecord], sdpa: str) -> None:
    device = torch.device(settings.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    content = {
        "device": name,
        "versions": {"torch": torch.__version__, "hess-plugin": _own_version()},
        "sdpa": sdpa,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(settings).items()},
        "records": [vars(record) for record in records],
    }
    write_atomic(settings.out / NUMBERS, (json.dumps(content, indent=1) + "\n").encode())


def _own_version() -> str:
    try:
        return version("hess-plugin")
    except ImportError:  # run from the source tree
        return "not installed"


def line(record: BenchRecord) -> str:
    """One row of the table that the command prints."""
    head = f"{record.views:5} views {record.tokens:8} tokens {record.attention:6}"
    if record.seconds is None:
        return f"{head}  {record.failed}"
    memory = "" if record.peak_bytes is None else f" {record.peak_bytes / 1e9:6.1f} GB"
    parts = "  ".join(f"{name} {seconds:.2f}" for name, seconds in record.parts.items())
    return f"{head} {record.seconds:8.2f} s{memory}  density {record.density:.2f}  {parts}"
