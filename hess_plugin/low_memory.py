"""Less memory for models whose code is not ours: the same modules in pieces, unread outputs dropped.

The native models do this by themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .backbones import find_backbone


class LowMemory:
    """What `save_memory` changed in a model, and the way back; a context manager, removed at its end."""

    def __init__(self, replaced: Mapping[nn.Module, Callable[..., Any]]) -> None:
        self._replaced = dict(replaced)
        self._before = {module: module.__dict__.get("forward") for module in replaced}
        for module, forward in replaced.items():
            module.__dict__["forward"] = forward

    def remove(self) -> None:
        """Give all modules their own forward back; a second call does nothing.

        Raises:
            RuntimeError: somebody else replaced one in the meantime; nothing is changed then.
        """
        for module, forward in self._replaced.items():
            if module.__dict__.get("forward") is not forward:
                raise RuntimeError(
                    f"the forward of a {type(module).__name__} was replaced after save_memory; undo that."
                )
        for module in self._replaced:
            del module.__dict__["forward"]
            if self._before[module] is not None:
                module.__dict__["forward"] = self._before[module]
        self._replaced = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def save_memory(model: nn.Module, views_at_once: int = 32, tokens_at_once: int = 1 << 16) -> LowMemory:
    """Let a loaded model of the original VGGT class need less memory where no gradient is recorded, in place.

    1. Blocks that work within views (image encoder, frame attention) take some views at a time.
    2. MLPs take some tokens at a time: their hidden layer is four times as wide.
    3. Of the layer outputs, which the original keeps all, those that no head reads hold no memory; whoever
       reads them finds NaN. What a head reads is its `intermediate_layer_idx`, and the last layer.

    Results agree up to rounding. It goes together with `apply_hess`, in any order; not with `torch.compile`.

    Args:
        model: of a family whose backbone knows its pieces.
        views_at_once: at least 1.
        tokens_at_once: at least 1.

    Raises:
        ValueError: another family, or a native model; a size below 1.
        RuntimeError: the model is in this state already.
    """
    backbone = find_backbone(model)
    pieces = backbone.pieces(model)
    if pieces is None:
        raise ValueError(
            f"save_memory knows no pieces of {type(model).__name__}; the original VGGT has them."
        )
    if min(views_at_once, tokens_at_once) < 1:
        raise ValueError(f"sizes must be at least 1, got {views_at_once} views and {tokens_at_once} tokens.")
    whole = backbone.image_module(model)
    if getattr(whole.__dict__.get("forward"), "func", None) is _without_unread:
        raise RuntimeError("save_memory was called on this model already; remove that first.")
    replaced: dict[nn.Module, Callable[..., Any]] = {
        whole: partial(_without_unread, whole.forward, pieces.width, pieces.depth, pieces.read_layers)
    }
    replaced |= {module: partial(_in_pieces, module.forward, views_at_once) for module in pieces.by_view}
    replaced |= {module: partial(_by_token, module.forward, tokens_at_once) for module in pieces.by_token}
    return LowMemory(replaced)


def _in_pieces(forward: Callable[..., Tensor], at_once: int, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`forward(x, ...)` for some items of the first axis at a time; arguments as long as x are cut too."""
    count = len(x)
    if torch.is_grad_enabled() or count <= at_once:
        return forward(x, *args, **kwargs)

    def cut(value: Any, piece: slice) -> Any:
        return value[piece] if isinstance(value, Tensor) and value.shape[:1] == x.shape[:1] else value

    out: Tensor | None = None
    for start in range(0, count, at_once):
        piece = slice(start, start + at_once)
        named = {name: cut(value, piece) for name, value in kwargs.items()}
        part = forward(x[piece], *(cut(value, piece) for value in args), **named)
        out = part.new_empty(count, *part.shape[1:]) if out is None else out
        out[piece] = part
    assert out is not None
    return out


def _by_token(forward: Callable[..., Tensor], at_once: int, x: Tensor) -> Tensor:
    """`forward(x)` of x [..., C], where tokens do not see each other."""
    return _in_pieces(forward, at_once, x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def _without_unread(
    forward: Callable[..., Any], width: int, depth: int, read: frozenset[int], *args: Any, **kwargs: Any
) -> Any:
    if torch.is_grad_enabled():
        return forward(*args, **kwargs)
    with _DropUnread(width, read) as outputs:
        result = forward(*args, **kwargs)
    if outputs.seen != depth:
        raise RuntimeError(
            f"save_memory saw {outputs.seen} outputs of {depth} layers: this class puts them together in "
            "another way; remove it."
        )
    return result


class _DropUnread(TorchFunctionMode):
    """Output i of an aggregator is the i-th concatenation of two tensors of its width along the last axis."""

    def __init__(self, width: int, read: frozenset[int]) -> None:
        super().__init__()
        self.width, self.read, self.seen = width, read, 0

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.cat, torch.concat, torch.concatenate) or not self._is_output(*args, **kwargs):
            return func(*args, **kwargs)
        self.seen += 1
        if self.seen - 1 in self.read:
            return func(*args, **kwargs)
        first = (args[0] if args else kwargs["tensors"])[0]
        return first.new_full((), math.nan).expand(*first.shape[:-1], 2 * self.width)

    def _is_output(self, tensors: Sequence[Tensor], dim: int = 0, **others: Any) -> bool:
        return (
            len(tensors) == 2
            and dim in (-1, tensors[0].ndim - 1)
            and all(x.shape[-1:] == (self.width,) for x in tensors)
        )
