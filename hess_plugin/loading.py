"""Load a checkpoint for a command: what the user can mend becomes one line, never half a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.hub import extract_commit_hash

from .backbones import find_backbone
from .datasets import Dataset
from .datasets.choice import DatasetChoice
from .errors import InputError, input_errors
from .models import Pi3Model, VggtModel

ASSETS = Path(__file__).parent / "assets"
EMBEDDED_MODEL = ASSETS / "tiny_vggt"  # a checkpoint with scores that is always there


def load_model(name: str, device: str, hess: Any = None, model_class: str | type | None = None) -> Any:
    """The model of a folder or repository in float32, in eval mode, on a device.

    Args:
        name: folder or repository of a checkpoint.
        device: as torch names it.
        hess: every form that `from_pretrained` takes; None leaves the model dense.
        model_class: with a `from_pretrained`, or "module:name" of one; None takes `VggtModel` or `Pi3Model`,
            whichever has the checkpoint's tensors.

    Raises:
        InputError: no such model, class or scores, a checkpoint that lacks tensors of the class (libraries
            would fill them with random numbers), a device that cannot be used, too little memory.
    """
    check_folder(name)
    kinds = (OSError, ValueError, RuntimeError, SafetensorError)  # no such model, scores, shapes, broken file
    given = {} if hess is None else {"hess": hess}
    if isinstance(model_class, str):
        model_class = _import_class(model_class)
    with input_errors(*kinds, prefix=f"cannot load {name}: "), memory_errors(device), _quiet_transformers():
        model = _load(model_class or _native_class(name), name, **given)
    prefix = f"cannot use the device {device!r}: "
    with input_errors(RuntimeError, AssertionError, prefix=prefix), memory_errors(device):
        return model.to(device).eval()


def open_scenes(choice: DatasetChoice, model: nn.Module, min_views: int, **more: Any) -> Dataset:
    """The dataset with photos of the size that a model takes; arguments as of `DatasetChoice.open`.

    Raises:
        InputError: the dataset cannot be opened, or the model is of no known family.
    """
    with input_errors(ValueError):
        patch_size = find_backbone(model).patch_size(model)[0]
    own_width = getattr(getattr(model, "config", None), "img_size", None)
    return choice.open(patch_size, own_width, min_views, **more)


def check_folder(name: str) -> None:
    """Raise InputError if a model's name is a path to no folder; libraries would ask the network for it."""
    if (Path(name).is_absolute() or name.startswith((".", "~"))) and not Path(name).is_dir():
        raise InputError(f"there is no model folder {name!r}; give --model a folder or a repository.")


def _load(model_class: Any, name: str, **given: Any) -> nn.Module:
    """A complete model in float32; libraries leave what a checkpoint lacks random, without an error."""
    if issubclass(model_class, PreTrainedModel):
        given |= {"dtype": torch.float32, "output_loading_info": True}
        model, report = model_class.from_pretrained(name, **given)
        missing = report["missing_keys"]
    else:
        model = model_class.from_pretrained(name, **given).float()
        present = _tensor_names(name)
        missing = [each for each in model.state_dict() if present and each not in present]
    if missing:
        raise InputError(
            f"{name} is no {model_class.__name__} checkpoint: it lacks {len(missing)} tensors of that class, "
            f"among them {min(missing)!r}; give --model a folder or repository of one."
        )
    return model


def _import_class(spec: str) -> type:
    """The class "module:name"."""
    module, _, name = spec.partition(":")
    prefix = f"cannot import the class {spec!r} (written module:name): "
    with input_errors(ImportError, AttributeError, ValueError, prefix=prefix):
        found = getattr(import_module(module), name)
    if not hasattr(found, "from_pretrained"):
        raise InputError(
            f"{spec} has no from_pretrained, so its weights cannot be found by name; load it in Python and "
            "call hess_plugin.calibration.run.calibrate on it, or name a subclass that has one."
        )
    return found


def _native_class(name: str) -> type[PreTrainedModel]:
    """The native class whose tensors a checkpoint has."""
    names = _tensor_names(name)
    if any(each.startswith("aggregator.") for each in names):
        return VggtModel
    if "register_token" in names and any(each.startswith("decoder.") for each in names):
        return Pi3Model
    if not names:
        _check_absence(name)
    example = f"it has {len(names)} tensors, {min(names)!r} among them" if names else "it has no safetensors"
    raise InputError(
        f"{name} is a checkpoint of neither VggtModel nor Pi3Model: {example}; name the class that it is for "
        "with --model-class MODULE:CLASS."
    )


def _check_absence(name: str) -> None:
    """OSError if a checkpoint without safetensors may have some: the Hub was not reached, or refused."""
    try:
        cached_file(name, SAFE_WEIGHTS_NAME)
    except OSError as error:
        if error.__cause__ is not None:  # an answer that there is no such file has no other error behind it
            raise


def commit_of(name: str) -> str | None:
    """Commit of the repository that a model was just loaded from; None for a folder."""
    for file in (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME):
        path = cached_file(name, file, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            return extract_commit_hash(path, None)
    return None


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all weights of a model: names, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _tensor_names(name: str) -> set[str]:
    """Names in a checkpoint's safetensors; downloads what loading the model takes from the cache later."""
    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is not None:
        return set(json.loads(Path(index).read_text())["weight_map"])
    weights = cached_file(name, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if weights is None:
        return set()
    with safe_open(weights, framework="pt") as file:
        return set(file.keys())


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
