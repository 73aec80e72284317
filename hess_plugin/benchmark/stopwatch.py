"""How long the parts of a model take, within one forward pass."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import HeSSAttention
from ..sparsity import BlockPlan, BlockSelection

# Names of modules, and what their time counts as; "prediction" is counted too, within global attention.
PARTS = {
    r"aggregator\.patch_embed": "image encoder",
    r"aggregator\.frame_blocks\.\d+": "frame blocks",
    r"aggregator\.global_blocks\.\d+\.attn": "global attention",
    r"aggregator\.global_blocks\.\d+\.mlp": "global MLP",
    r"\w+_head": "heads",
}


class _TimedPlan:
    """A `BlockPlan` whose work, when it is made and between the groups of heads, counts as "prediction"."""

    def __init__(self, watch: Stopwatch, make: Callable[..., BlockPlan], *args: Tensor) -> None:
        self._watch = watch
        with watch.span("prediction"):
            self._plan = make(*args)
        self.row_counts = self._plan.row_counts

    def __iter__(self) -> Iterator[tuple[slice, BlockSelection]]:
        groups = iter(self._plan)
        while True:
            with self._watch.span("prediction"):
                group = next(groups, None)
            if group is None:
                return
            yield group
            del group  # half a gigabyte of a million tokens, before the next one is made


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
        sparse: list[Any] = [
            module.processor for module in model.modules() if isinstance(module, HeSSAttention)
        ]
        for processor in sparse:
            processor.plan = partial(_TimedPlan, self, processor.plan)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for processor in sparse:
                del processor.plan

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
