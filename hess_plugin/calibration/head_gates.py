"""A gate of value 1 on the output of every head of the global attentions, to differentiate by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones import Backbone


@contextmanager
def head_gates(backbone: Backbone, attentions: Iterable[Any]) -> Iterator[list[Tensor]]:
    """Multiply what each head hands to the output projection by its gate; then as before.

    Gates of 1 change no bit of the forward. Heads lie one after another in the input of `proj`, as everywhere
    in this package.

    Args:
        backbone: family of the attentions.
        attentions: in layer order.

    Yields:
        The gates of each layer, [H] float32, or float64 in a model of that type; they require gradients.
    """
    gates, hooks = [], []
    try:
        for attn in attentions:
            weight = attn.proj.weight
            dtype = torch.promote_types(weight.dtype, torch.float32)
            gate = torch.ones(backbone.num_heads(attn), dtype=dtype, device=weight.device, requires_grad=True)
            gates.append(gate)
            hooks.append(attn.proj.register_forward_pre_hook(_Gate(gate)))
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


class _Gate:
    """Forward pre-hook of an output projection."""

    def __init__(self, gate: Tensor) -> None:
        self.gate = gate

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        heads = args[0].unflatten(-1, (len(self.gate), -1))
        return (heads * self.gate.to(heads.dtype)[:, None]).flatten(-2)
