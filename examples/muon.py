"""Muon: momentum whose direction is made orthogonal, for the weight matrices inside a transformer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; for matrices only, all others belong to AdamW.

    The step is scaled to the size of an AdamW step (by 0.2 · √(longer side), as in "Muon is scalable for LLM
    training", 2025), so both optimisers share one learning rate. A matrix of three times as many rows as
    columns is a fused one (queries, keys, values) and treated as three. Equal shapes are stacked, so that a
    small model needs a few hundred kernels per step; `torch.optim.Muon`, matrix by matrix, needs thousands.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of all parameters from their gradients."""
        for group in self.param_groups:
            weights = group["params"]
            gradients = [weight.grad for weight in weights]
            for weight in weights:
                if "momentum" not in self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            momenta = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, _directions(ahead), alpha=-group["lr"])


def _directions(updates: list[Tensor]) -> list[Tensor]:
    """Orthogonal matrices nearest to the updates (per third of a fused one), in AdamW's size."""
    members = defaultdict(list)  # shape of a wide matrix -> (index, third) and the matrix
    for index, update in enumerate(updates):
        rows, columns = update.shape
        for part in update.chunk(3 if rows == 3 * columns else 1):
            wide = part.mT if part.shape[0] > part.shape[1] else part
            members[wide.shape].append((index, wide))
    parts: list[list[Tensor]] = [[] for _ in updates]
    for shape, stack in members.items():
        orthogonal = orthogonalize(torch.stack([wide for _, wide in stack])) * (0.2 * max(shape) ** 0.5)
        for (index, _), matrix in zip(stack, orthogonal, strict=True):
            parts[index].append(matrix)
    results = []
    for update, pieces in zip(updates, parts, strict=True):
        tall = len(pieces) == 1 and update.shape[0] > update.shape[1]
        results.append(pieces[0].mT if tall else torch.cat(pieces))
    return [result.to(update.dtype) for result, update in zip(results, updates, strict=True)]


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices [N, rows, columns], rows <= columns, with all singular values brought near 1 (0.7 to 1.2).

    Five steps of a quintic Newton-Schulz iteration in bfloat16; its coefficients trade exactness for speed.
    """
    x = matrices.bfloat16()
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def is_inner_matrix(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether Muon takes the parameter: the matrices inside transformer blocks."""
    return parameter.ndim == 2 and ("_blocks." in name or ".trunk." in name)
