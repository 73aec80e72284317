"""The module that stands in for a global attention: same children, another way to attend."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

from .backbones import Backbone, TokenLayout

# What accelerate sets on an instance, bound to it; and what `module.compile()` does.
_DEVICE_HOOK = ("forward", "_old_forward", "_hf_hook")
_BOUND_TO_ORIGINAL = (*_DEVICE_HOOK, "_compiled_call_impl")


class AttentionProcessor(Protocol):
    """How one global layer attends; plain data, which can be pickled and copied."""

    @property
    def density(self) -> Tensor | None:
        """[B, H] float64: share of the attention work that each head did in the last call; None before."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout) -> Tensor:
        """From q, k, v [B, H, T, D], as `Backbone.project_qkv` gives them, to outputs of the same shape."""


class LayoutRecorder:
    """Forward pre-hook of the module that takes the images: keeps the token layout of the current pass."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.layout: TokenLayout | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.layout = self.backbone.token_layout(module, args, kwargs)
        # Once per pass, before any layer: on a GPU the layers themselves can only abort, not explain.
        images = None if torch.compiler.is_compiling() else self.backbone.images(args, kwargs)
        if images is not None and not bool(images.isfinite().all()):
            raise ValueError("images contain NaN or infinity; check how they were read and scaled to [0, 1].")


class HeSSAttention(nn.Module):
    """A global attention whose product over all tokens is left to a processor.

    It takes over the original's children, parameters, hooks and attributes: the very same objects, so that
    state-dict keys stay, and `.to()` or `load_state_dict` reach both.
    """

    proj: nn.Module

    def __init__(
        self,
        original: nn.Module,
        backbone: Backbone,
        processor: AttentionProcessor,
        recorder: LayoutRecorder,
    ) -> None:
        super().__init__()
        shared = {key: value for key, value in original.__dict__.items() if key not in _BOUND_TO_ORIGINAL}
        self.__dict__.update(shared)
        _set_device_hook(self, original.__dict__.get("_hf_hook"))
        self.backbone = backbone
        self.processor = processor
        self.recorder = recorder

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Tokens [B, T, C] to the same shape; the arguments are those of the original attention."""
        if self.recorder.layout is None:
            raise RuntimeError(
                "sparse global attention has seen no images, so it does not know which tokens are patches; "
                "call the model itself, as model(images), not one of its layers or model.forward."
            )
        q, k, v = self.backbone.project_qkv(self, x, *args, **kwargs)
        out = self.processor(q, k, v, self.recorder.layout)
        del q, k, v  # of a thousand views they are gigabytes, and so is what follows
        return self.proj(out.transpose(1, 2).flatten(2))

    def return_state(self, original: nn.Module) -> None:
        """Carry over to the original what may have changed here and is not shared by the two."""
        original.training = self.training
        hook = self.__dict__.get("_hf_hook")
        if hook is not original.__dict__.get("_hf_hook"):
            _set_device_hook(original, hook)


def _set_device_hook(module: nn.Module, hook: ModelHook | None) -> None:
    """Give a module this accelerate hook and no other, without running its `init_hook` a second time."""
    for key in _DEVICE_HOOK:
        module.__dict__.pop(key, None)
    if hook is not None:
        add_hook_to_module(module, ModelHook())
        module.__dict__["_hf_hook"] = hook
