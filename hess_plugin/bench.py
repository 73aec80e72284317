"""Time and memory of a whole VGGT over the number of views, dense and sparse: what `hess bench` does."""

from __future__ import annotations

import json
import platform
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from tqdm import tqdm

from .attention import HeSSAttention
from .config import Backend, HeSSConfig
from .errors import InputError, input_errors
from .files import MANIFEST, write_atomic
from .loading import memory_errors
from .models import VggtConfig, VggtModel
from .patch import apply_hess
from .scores import HeadScores, ScoresInfo, trace_names

PICTURE = "bench.png"
# Names of modules, and what their time counts as; "prediction" is counted too, within global attention.
PARTS = {
    r"aggregator\.patch_embed": "image encoder",
    r"aggregator\.frame_blocks\.\d+": "frame blocks",
    r"aggregator\.global_blocks\.\d+\.attn": "global attention",
    r"aggregator\.global_blocks\.\d+\.mlp": "global MLP",
    r"\w+_head": "heads",
}
# The first may refuse float32, in which the heads are, so there is always another.
_FALLBACKS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
SDPA = {
    "default": None,
    "cuDNN": [SDPBackend.CUDNN_ATTENTION, *_FALLBACKS],
    "FlashAttention-2": [SDPBackend.FLASH_ATTENTION, *_FALLBACKS],
}
_TRIAL_TOKENS = 32768
_WARM_SECONDS = 15.0  # a pass that takes longer is not repeated for the sake of compilation


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


class Stopwatch:
    """Sums up the time of parts of a forward pass, on a GPU without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        begin = self._now()
        yield
        self._spans.append((name, begin, self._now()))

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Time every module that `PARTS` names, and the prediction within sparse attentions."""
        hooks, begun = [], {}

        def start(module: nn.Module, args: Any) -> None:
            begun[module] = self._now()

        def stop(part: str, module: nn.Module, args: Any, output: Any) -> None:
            self._spans.append((part, begun[module], self._now()))

        for name, module in model.named_modules():
            part = next((part for pattern, part in PARTS.items() if re.fullmatch(pattern, name)), None)
            if part is not None:
                hooks.append(module.register_forward_pre_hook(start))
                hooks.append(module.register_forward_hook(lambda *call, part=part: stop(part, *call)))
        sparse = [module.processor for module in model.modules() if isinstance(module, HeSSAttention)]
        for processor in sparse:
            processor.span = self.span
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for processor in sparse:
                del processor.span

    def seconds(self) -> dict[str, float]:
        """Of each part that was seen; waits for the GPU."""
        if self._cuda:
            torch.cuda.synchronize()
        sums: dict[str, float] = defaultdict(float)
        for name, begin, end in self._spans:
            sums[name] += begin.elapsed_time(end) / 1000 if self._cuda else end - begin
        return dict(sums)

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def run_bench(settings: BenchSettings, config: VggtConfig | None = None) -> list[BenchRecord]:
    """Measure everything; results are written after every measurement.

    Writes `results.json` and, at the end, `bench.png` (needs the extra `demo`) into `settings.out`.

    Args:
        settings: See there.
        config: Of the model; None is VGGT-1B without its track head. Weights are random: neither time nor
            memory depends on them. All but the heads is in bfloat16 on a GPU.

    Raises:
        InputError: a device that cannot be used, a folder that cannot be written.
    """
    device = torch.device(settings.device)
    with input_errors(OSError, prefix=f"cannot write to {settings.out}: "):
        settings.out.mkdir(parents=True, exist_ok=True)
    model = build_model(config or VggtConfig(enable_track=False), device)
    sdpa = fastest_sdpa(device)
    runs = [(views, kind) for views in sorted(settings.views) for kind in ("dense", "sparse")]
    runs = [(views, kind) for views, kind in runs if kind == "sparse" or views <= settings.dense_views]
    records: list[BenchRecord] = []
    for views, kind in tqdm(runs, unit="run", disable=None):
        records.append(_measure(model, views, kind, settings, sdpa))
        _write(settings, records, sdpa)
        tqdm.write(line(records[-1]))
    from .plots.bench import draw_bench
    from .plots.figure import save

    with input_errors(ImportError, OSError, prefix=f"cannot draw {PICTURE}: "):
        save(draw_bench([vars(record) for record in records]), settings.out / PICTURE)
    return records


def build_model(config: VggtConfig, device: torch.device) -> VggtModel:
    """A model of random weights, in eval mode, made where it will be."""
    prefix = f"cannot use the device {str(device)!r}: "
    kinds = (RuntimeError, AssertionError)
    with memory_errors(str(device)), input_errors(*kinds, prefix=prefix), torch.device(device):
        torch.manual_seed(0)
        model = VggtModel(config)
    if device.type == "cuda":
        for name, child in model.named_children():
            if name not in model._keep_in_fp32_modules_strict:
                child.to(torch.bfloat16)
    return model.eval()


def fastest_sdpa(device: torch.device) -> str:
    """The key of `SDPA` that is fastest on one global attention; on a CPU there is no choice."""
    if device.type != "cuda":
        return "default"
    q = torch.randn(1, 16, _TRIAL_TOKENS, 64, device=device, dtype=torch.bfloat16)
    times: dict[str, float] = {}
    for name in SDPA:
        for _ in range(2):
            watch = Stopwatch(device)
            with use_sdpa(name), watch.span(name):
                scaled_dot_product_attention(q, q, q)
            times |= watch.seconds()
    return min(times, key=times.__getitem__)


def use_sdpa(name: str) -> AbstractContextManager[Any]:
    """PyTorch's attention by the implementation of that name in `SDPA`."""
    order = SDPA[name]
    return _nothing() if order is None else sdpa_kernel(order, set_priority=True)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _measure(model: VggtModel, views: int, kind: str, settings: BenchSettings, sdpa: str) -> BenchRecord:
    device = torch.device(settings.device)
    grid = (settings.height // model.config.patch_size, settings.width // model.config.patch_size)
    record = {"views": views, "tokens": views * (grid[0] * grid[1] + 5), "attention": kind}
    handle = None
    try:
        if kind == "sparse":
            handle = apply_hess(model, log_normal_scores(model), _sparse_config(settings))
        images = torch.rand(views, 3, settings.height, settings.width, device=device)
        seconds, parts, peak = _timed_pass(model, images, sdpa)
        if seconds < _WARM_SECONDS and device.type == "cuda":  # the first one compiled kernels
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
    return HeSSConfig(sparse_ratio=1 - settings.density, cdf_threshold=0, backend=settings.backend)


def log_normal_scores(model: VggtModel) -> HeadScores:
    """Scores as uneven as measured ones: e^(1.5 z) of standard normal z, the same every time."""
    config = model.config
    shape = (1, config.depth, config.num_heads)
    generator = torch.Generator().manual_seed(0)
    traces = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).mul(1.5).exp()
        for name in trace_names(("query",))
    }
    info = ScoresInfo(
        backbone="vggt",
        num_layers=config.depth,
        num_heads=config.num_heads,
        head_dim=config.embed_dim // config.num_heads,
        dataset="random numbers",
        scene_ids=("none",),
        view_ids=(("none",),),
        num_views=1,
        seed=0,
        camera_weight=0.5,
    )
    return HeadScores(traces, info)


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
    write_atomic(settings.out / MANIFEST, (json.dumps(content, indent=1) + "\n").encode())


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
    return f"{head} {record.seconds:8.2f} s{memory}  {parts}"
