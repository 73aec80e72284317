"""Helpers of the patching tests: tiny models, patched or not, and everything a model is made of."""

from __future__ import annotations

import copy
from typing import Any

import torch
from doubles import TINY_MODELS
from sidecars import scores_of, sparse
from torch import nn

from hess_plugin.backbones import find_backbone
from hess_plugin.config import HeSSConfig
from hess_plugin.patch import apply_hess

UNIFORM = HeSSConfig(allocation="uniform", sparse_ratio=0.5, cdf_threshold=0, q_block_size=4, kv_block_size=4)


def build(name: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return TINY_MODELS[name]().eval()


def with_other_weights(model: nn.Module) -> nn.Module:
    """A model of the same class, size and keys."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return other


def attentions(model: nn.Module) -> list[Any]:
    return list(find_backbone(model).global_attentions(model).values())


def patched(model: nn.Module) -> nn.Module:
    apply_hess(model, scores_of(model), sparse())
    return model


def tree(model: nn.Module) -> dict[str, Any]:
    """Everything that makes up a model, by identity: modules, tensors, and what each module carries."""
    found: dict[str, Any] = {name: id(module) for name, module in model.named_modules()}
    found |= {f"tensor {name}": id(t) for name, t in model.state_dict(keep_vars=True).items()}
    for name, module in model.named_modules():
        found[f"attributes of {name}"] = list(module.__dict__)
        found[f"values of {name}"] = [id(value) for value in module.__dict__.values()]
        found[f"hooks of {name}"] = (len(module._forward_pre_hooks), len(module._forward_hooks))
    return found
