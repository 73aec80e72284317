"""What is measured: a model of random weights, scores as uneven as real ones, PyTorch's fastest attention."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from ..errors import input_errors
from ..loading import memory_errors
from ..models import VggtConfig, VggtModel
from ..scores import HeadScores, ScoresInfo, trace_names
from .stopwatch import Stopwatch

# The first may refuse float32, in which the heads are, so there is always another.
_FALLBACKS = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
SDPA = {
    "default": None,
    "cuDNN": [SDPBackend.CUDNN_ATTENTION, *_FALLBACKS],
    "FlashAttention-2": [SDPBackend.FLASH_ATTENTION, *_FALLBACKS],
}
_TRIAL_TOKENS = 32768


def build_model(config: VggtConfig, device: torch.device) -> VggtModel:
    """A model of random weights, in eval mode, made where it will be."""
    prefix = f"cannot use the device {str(device)!r}: "
    kinds = (RuntimeError, AssertionError)
    with memory_errors(str(device)), input_errors(*kinds, prefix=prefix), torch.device(device):
        torch.manual_seed(0)
        model = VggtModel(config)
    return (body_in_bfloat16(model) if device.type == "cuda" else model).eval()


def body_in_bfloat16(model: VggtModel) -> VggtModel:
    """The same model, all but its heads rounded in place: what `from_pretrained(dtype="bfloat16")` gives."""
    for name, child in model.named_children():
        if name not in model._keep_in_fp32_modules_strict:
            child.to(torch.bfloat16)
    return model


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
    return nullcontext() if order is None else sdpa_kernel(order, set_priority=True)


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
