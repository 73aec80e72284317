"""Load a VGGT checkpoint for a command: what the user can mend becomes one line, never half a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from .errors import InputError, input_errors
from .models import VggtModel


def load_vggt(name: str, device: str, hess: Any = None) -> VggtModel:
    """The model of a folder or repository in float32, in eval mode, on a device.

    Args:
        name: folder or repository of a VGGT checkpoint.
        device: as torch names it.
        hess: every form that `from_pretrained` takes; None leaves the model dense.

    Raises:
        InputError: no such model or scores, a checkpoint that lacks tensors of VggtModel (transformers would
            fill them with random numbers), a device that cannot be used, too little memory.
    """
    kinds = (OSError, ValueError, RuntimeError, SafetensorError)  # no such model, scores, shapes, broken file
    with input_errors(*kinds), memory_errors(device), _quiet_transformers():
        loaded: Any = VggtModel.from_pretrained(
            name, hess=hess, dtype=torch.float32, output_loading_info=True
        )
    model, missing = loaded[0], sorted(loaded[1]["missing_keys"])
    if missing:
        raise InputError(
            f"{name} is no VGGT checkpoint: it lacks {len(missing)} tensors of VggtModel, among "
            f"them {missing[0]!r}; give --model a folder or repository of one."
        )
    prefix = f"cannot use the device {device!r}: "
    with input_errors(RuntimeError, AssertionError, prefix=prefix), memory_errors(device):
        return model.to(device).eval()


@contextmanager
def memory_errors(device: str, views: str = "") -> Iterator[None]:
    """Turn every form in which memory runs out into one line that says what to change.

    Args:
        device: in use, named in the message.
        views: where fewer would help, how many there are and the option that sets them.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "can't allocate memory" not in str(error):  # what the CPU allocator says
            raise
        fewer = f" for {views}; use fewer or" if views else " for the model; use"
        raise InputError(f"too little memory on {device}{fewer} another device (--device).") from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No loading bars and reports: commands have bars of their own, and one line for what does not load."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
