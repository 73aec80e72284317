"""Sparse attention that is in a model: what stands where, what it measured, and the way out."""

from __future__ import annotations

import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .attention import HeSSAttention
from .scores import HeadScores


@dataclass(frozen=True)
class HeSSStats:
    """What was skipped in the last forward pass; special tokens are never skipped and not counted."""

    density: Tensor  # [L, H] float64, attended share of the pairs of patch blocks, mean over the batch

    @property
    def sparsity(self) -> Tensor:
        """[L, H] float64: skipped share, 1 - density."""
        return 1 - self.density

    def summary(self) -> str:
        """One line for people."""
        low, high = self.sparsity.aminmax()
        size = "{} layers x {} heads".format(*self.density.shape)
        return f"sparsity {self.sparsity.mean():.3f} (heads {low:.3f} to {high:.3f}, {size})"


@dataclass(frozen=True, eq=False)
class Replacement:
    """One global attention and what stands in its place."""

    layer: int
    name: str
    original: nn.Module
    sparse: HeSSAttention
    places: tuple[tuple[nn.Module, str], ...]  # every parent, and its name for this child

    def install(self, module: nn.Module) -> None:
        for parent, child in self.places:
            setattr(parent, child, module)

    def is_in_place(self) -> bool:
        return all(parent._modules.get(child) is self.sparse for parent, child in self.places)


class HeSSHandle:
    """Sparse attention in one model: what it does, what it measured, and the way back.

    As a context manager it is removed at the end of the block, also after an exception.
    """

    def __init__(
        self,
        model: nn.Module,
        replacements: list[Replacement],
        hook: RemovableHandle,
        size: tuple[int, int],
        scores: HeadScores | None,
        config: Any,
    ) -> None:
        self.scores = scores
        self.config = config  # HeSSConfig, or the settings of another method
        self._replacements = replacements
        self._hook: RemovableHandle | None = hook  # None once removed
        self._size = size  # L, H
        # Weak, because the model holds the handle: `del model` shall free its memory at once.
        self._model = weakref.ref(model)

    @property
    def stats(self) -> HeSSStats:
        """Measured in the last forward pass; RuntimeError before the first."""
        measured: list[Tensor] = []
        for replacement in self._replacements:
            density = replacement.sparse.processor.density
            if density is None:
                raise RuntimeError(
                    "no forward pass has been measured yet; run model(images), then read stats."
                )
            measured.append(density.mean(0))
        density = torch.ones(self._size, dtype=torch.float64)
        if measured:
            layers = [replacement.layer for replacement in self._replacements]
            density[layers] = torch.stack([each.to(measured[0].device) for each in measured]).cpu()
        return HeSSStats(density)

    def remove(self) -> None:
        """Give the model its own attention modules back; a second call does nothing.

        Raises:
            RuntimeError: a module of ours was replaced in the meantime; nothing is changed then.
        """
        if self._hook is None:
            return
        for replacement in self._replacements:
            if not replacement.is_in_place():
                raise RuntimeError(
                    f"{replacement.name} was replaced after apply_hess; undo that, then remove."
                )
        for replacement in self._replacements:
            replacement.sparse.return_state(replacement.original)
            replacement.install(replacement.original)
        self._hook.remove()
        self._hook = None
        model = self._model()
        if model is not None:
            model.__dict__.pop("hess", None)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the scores into a model folder, as `hess/<calibration set>/`; nothing if there are none."""
        if self.scores is not None:
            alias = re.sub(r"[^A-Za-z0-9._-]+", "-", self.scores.info.dataset).strip("._-") or "scores"
            self.scores.save(Path(folder) / "hess" / alias)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": self._model()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _model=weakref.ref(state["_model"]))
