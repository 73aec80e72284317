"""`from_pretrained(..., hess=...)` for model classes: register, unregister, and a call that needs neither.

`register` hooks the documented override points of one class: `_from_pretrained`/`_save_pretrained` of a
`ModelHubMixin`, `from_pretrained`/`save_pretrained` of a transformers `PreTrainedModel`. Scores are resolved
before the weights are read, so a wrong name fails in a second; that they fit is checked on the loaded model.

A class with `**kwargs` that was never registered swallows `hess=` and runs dense without a word: nothing of
ours is called, so nothing can warn. Register it, import `hess_plugin.auto`, or load by the `from_pretrained`
of this module.
"""

from __future__ import annotations

import functools
import inspect
import sys
import tempfile
import threading
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from .errors import InputError
from .files import written_files
from .sidecar import Sidecar, resolve
from .upload import upload

_ACCESS = (
    "revision",
    "token",
    "cache_dir",
    "force_download",
    "local_files_only",
)  # these serve the sidecar too
_UNDO = "_hess_undo"
_lock = threading.RLock()
_uploading = ContextVar("uploading", default=False)  # inside a push: the folder saved now is for its upload

Class = TypeVar("Class", bound=type)


def register(cls: Class) -> Class:
    """Teach a class `from_pretrained(..., hess=...)` and let its saves carry the sidecar; returns the class.

    Usable as a decorator. A second call changes nothing; `unregister` restores the class exactly. A model
    loaded with a sidecar has its handle as `model.hess`; a load without `hess=` is the original load.

    Args:
        cls: a `huggingface_hub.ModelHubMixin` or transformers `PreTrainedModel` class. Its family is
            recognised later, by the structure of the loaded model.

    Raises:
        TypeError: for any other class.
    """
    with _lock:
        if is_registered(cls):
            return cls
        if _is_subclass(cls, "huggingface_hub.hub_mixin", "ModelHubMixin"):
            hooks = _mixin_hooks(cls)
        elif _is_subclass(cls, "transformers.modeling_utils", "PreTrainedModel"):
            hooks = _transformers_hooks(cls)
        else:
            raise TypeError(
                f"cannot register {cls!r}: it is neither a ModelHubMixin nor a transformers PreTrainedModel; "
                "load the model your way and call hess_plugin.apply_hess(model, scores, config)."
            )
        undo = {name: cls.__dict__.get(name) for name in hooks}
        for name, hook in hooks.items():
            setattr(cls, name, hook)
        setattr(cls, _UNDO, undo)
    return cls


def unregister(cls: Class) -> Class:
    """Take back `register`: the class `__dict__` is what it was. A class not registered stays as it is."""
    with _lock:
        if is_registered(cls):
            for name, original in cls.__dict__[_UNDO].items():
                if original is None:
                    delattr(cls, name)
                else:
                    setattr(cls, name, original)
            delattr(cls, _UNDO)
    return cls


def is_registered(cls: type) -> bool:
    """Whether this very class is registered; a subclass of a registered class knows `hess=` but is not."""
    return _UNDO in cls.__dict__


def from_pretrained(cls: Any, model_id: str | Path, *, hess: Any = True, **kwargs: Any) -> Any:
    """`cls.from_pretrained(model_id, **kwargs)` with a sidecar, for a class that need not be registered.

    Args:
        cls: anything with `from_pretrained`: a model class, also one that takes `**kwargs`, or an Auto class.
        model_id: repository id or folder of the base model.
        hess: which scores and settings: True, alias, repository, path, HeadScores or HeSSConfig.
        **kwargs: passed on unchanged.

    Returns:
        What `cls.from_pretrained` returns. The class stays as it is: unless it is registered, its
        `save_pretrained` does not carry the sidecar; `model.hess.save_pretrained(folder)` writes it.
    """
    sidecar = _resolve(hess, model_id, kwargs)
    return _attach(cls.from_pretrained(model_id, **kwargs), sidecar)


def _is_subclass(cls: type, module: str, name: str) -> bool:
    """Without importing the library: a subclass cannot exist before its module was imported."""
    base = getattr(sys.modules.get(module), name, None)
    return base is not None and issubclass(cls, base)


def _resolve(hess: Any, base: Any, kwargs: dict[str, Any]) -> Sidecar | None:
    return resolve(hess, base, **{name: kwargs[name] for name in _ACCESS if name in kwargs})


def _attach(loaded: Any, sidecar: Sidecar | None) -> Any:
    """Apply to the model in what a loader returned: a model, or (model, info) with `output_loading_info`."""
    if sidecar is not None:
        from .patch import apply_hess

        apply_hess(loaded[0] if isinstance(loaded, tuple) else loaded, sidecar.scores, sidecar.config)
    return loaded


def _mixin_hooks(cls: Any) -> dict[str, Any]:
    load, save = cls._from_pretrained.__func__, cls._save_pretrained

    @functools.wraps(load)  # the mixin reads this signature in subclasses, to see whether they want `config`
    def _from_pretrained(klass: type, *, hess: Any = None, **kwargs: Any) -> Any:
        sidecar = _resolve(hess, kwargs["model_id"], kwargs)
        return _attach(load(klass, **kwargs), sidecar)

    @functools.wraps(save)
    def _save_pretrained(self: Any, save_directory: Path) -> None:
        save(self, save_directory)
        _save_sidecar(self, save_directory)

    return {"_from_pretrained": classmethod(_from_pretrained), "_save_pretrained": _save_pretrained}


def _transformers_hooks(cls: Any) -> dict[str, Any]:
    load = cls.from_pretrained.__func__

    @functools.wraps(load)
    def from_pretrained(
        klass: type, pretrained_model_name_or_path: Any, *args: Any, hess: Any = None, **kwargs: Any
    ) -> Any:
        sidecar = _resolve(hess, pretrained_model_name_or_path, kwargs)
        return _attach(load(klass, pretrained_model_name_or_path, *args, **kwargs), sidecar)

    return {
        "from_pretrained": classmethod(from_pretrained),
        "save_pretrained": _transformers_save(cls.save_pretrained),
        "push_to_hub": _transformers_push(cls.push_to_hub),
    }


def _transformers_save(save: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(save)
    def save_pretrained(
        self: Any,
        save_directory: Any,
        is_main_process: bool = True,
        state_dict: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> Any:
        # transformers uploads inside this call, before a sidecar could be written: here the upload is last.
        push_last = push_to_hub and is_main_process and _has_sidecar(self)
        upload = _upload_arguments(self.push_to_hub, state_dict, kwargs) if push_last else {}
        saved = save(
            self,
            save_directory,
            is_main_process=is_main_process,
            state_dict=state_dict,
            push_to_hub=push_to_hub and not push_last,
            **kwargs,
        )
        if is_main_process and not _uploading.get():
            _save_sidecar(self, save_directory)
        if push_last:
            self.push_to_hub(upload.pop("repo_id", Path(save_directory).name), **upload)
        return saved

    return save_pretrained


def _transformers_push(push: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(push)
    def push_to_hub(self: Any, repo_id: str, **kwargs: Any) -> Any:
        # Its upload refuses folders in folders, such as `hess/co3d`: they follow in a commit of their own.
        outside = _uploading.set(True)
        try:
            commit = push(self, repo_id, **kwargs)
        finally:
            _uploading.reset(outside)
        if _has_sidecar(self) and not _uploading.get():
            revision = commit.pr_revision or kwargs.get("revision")
            _upload_sidecar(self, commit.repo_url.repo_id, revision, kwargs.get("token"))
        return commit

    return push_to_hub


def _has_sidecar(model: Any) -> bool:
    return getattr(model, "hess", None) is not None


def _save_sidecar(model: Any, folder: Any) -> None:
    if _has_sidecar(model):
        model.hess.save_pretrained(folder)


def _upload_sidecar(model: Any, repo_id: str, revision: str | None, token: str | bool | None) -> None:
    """Commit what `_save_sidecar` writes; a model whose attention is uniform has no scores."""
    with tempfile.TemporaryDirectory() as folder:
        _save_sidecar(model, folder)
        files = {name: (Path(folder) / name).read_bytes() for name in written_files(Path(folder))}
    if files:
        upload(repo_id, files, "Upload HeSS scores", revision=revision, token=token)


def _upload_arguments(
    push_to_hub: Callable[..., Any], state_dict: dict[str, Any] | None, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a save that its upload needs; refuses those that `model.push_to_hub` would drop."""
    known = inspect.signature(push_to_hub).parameters
    lost = [name for name in kwargs if name not in known] + ["state_dict"] * (state_dict is not None)
    if lost:
        raise InputError(
            f"save_pretrained(push_to_hub=True) of a model with HeSS scores does not take {', '.join(lost)}; "
            "save without push_to_hub, then upload the folder."
        )
    return dict(kwargs)
