"""Where the scores come from: every form of `hess=`, the places it is looked for in, and the download.

A sidecar is the pair `hess_config.json` + `hess_scores.safetensors`. It lies at the root of a model folder or
of a repository of its own, or under `hess/<alias>/` of a model, where no loader takes it for weights.
Only this module and `upload` open the network; the weights are fetched by the model's own library.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .config import HeSSConfig
from .errors import InputError, input_errors
from .files import staged_folder
from .gates import GATES_FILE, HeadGates
from .scores import CONFIG_FILE, SCORES_FILE, HeadScores

# Known sidecar repositories: alias -> {base model id: "org/repo[@revision][:alias]"}. None is published yet.
KNOWN_SIDECARS: dict[str, dict[str, str]] = {}

SIDECAR_FILES = (CONFIG_FILE, SCORES_FILE)

FORMS = (
    "True (beside the weights), an alias such as 'co3d', 'org/repo[@revision][:alias]', a Path or a "
    "string starting with '.', '/' or '~', a HeadScores, a HeSSConfig whose `scores` is one of these, "
    "or None (dense)"
)
_NAME = r"[A-Za-z0-9][\w.-]*"
_CALIBRATE = (
    "Calibrate with `python -m hess_plugin.calibrate --model {model} --dataset folder --root SCENES --out "
    "scores/`, then pass hess='./scores'."
)
ALIAS = re.compile(_NAME)
REPOSITORY_NAME = re.compile(f"{_NAME}/{_NAME}")
_REPOSITORY = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^:@\s]+))?(?::(?P<alias>{_NAME}))?")
_SIDECAR_PATH = re.compile(rf"(hess/{_NAME}/)?({'|'.join(map(re.escape, SIDECAR_FILES))})")


class Sidecar(NamedTuple):
    """What a resolved `hess=` says; `scores` is None where the allocation reads none."""

    scores: HeadScores | None
    config: HeSSConfig
    folder: Path | None = None  # where the scores lie; None where they were given


def resolve(
    hess: Any, base: str | os.PathLike[str] | None, *, revision: str | None = None, **access: Any
) -> Sidecar | None:
    """Find and read what `hess=` names; the weights are not touched.

    Args:
        hess: True, alias, repository, path, HeadScores or HeSSConfig; None and False mean dense.
        base: repository id or folder of the model, None when it is loaded from neither.
        revision: revision of the base repository; no other repository is read at it.
        **access: `token`, `cache_dir`, `force_download`, `local_files_only`, as huggingface_hub takes them.

    Returns:
        Scores and settings, or None for dense.

    Raises:
        InputError: nothing found (with every place, what it holds and how to calibrate), or an unknown form.
        TypeError: for a value of another type.
    """
    if hess is None or hess is False:
        return None
    config = hess if isinstance(hess, HeSSConfig) else HeSSConfig(scores=hess)
    wanted = config.scores
    if config.allocation == "uniform" and (wanted is None or isinstance(wanted, bool)):
        return Sidecar(None, config)  # reads no scores, so none are asked for unless they are named
    if isinstance(wanted, HeadScores):
        return Sidecar(wanted, config)
    if wanted is not True and not isinstance(wanted, str | os.PathLike):
        raise TypeError(f"hess= does not take {wanted!r}; it takes {FORMS}.")
    tried: list[str] = []
    certain = True
    for place, alias in _places(wanted, base, revision, access):
        try:
            folder = place.find(alias)
            return Sidecar(HeadScores.load(folder), config, folder)
        except NotHere as answer:
            tried.append(f"{place}: {answer}")
            certain = answer.certain
            if not certain:  # it may hold what was asked for; the next place could hold other scores
                break
    if _is_alias(wanted):
        tried.append(f"the packaged index: {_index_answer(wanted, base)}")
    looked_at = "; ".join(f"({number}) {answer}" for number, answer in enumerate(tried, start=1))
    looked_at = looked_at or "no place, since the model comes from neither a repository nor a folder"
    raise InputError(
        f"no HeSS scores for hess={wanted if wanted is True else os.fspath(wanted)!r}"
        f"{'' if base is None else f' of the model {str(base)!r}'}. Looked at {looked_at}. "
        + (_CALIBRATE.format(model=base or "MODEL") if certain else "They may be there: try again later.")
    )


def pull(name: str, out: str | os.PathLike[str], **access: Any) -> HeadScores:
    """Copy the sidecar of a repository into a folder, with gates that lie beside it: all files or none.

    They are read first.

    Args:
        name: "org/repo[@revision][:alias]".
        out: new or empty folder; one that holds these very files already is left as it is.
        **access: `token`, `cache_dir`, `force_download`, `local_files_only`, as huggingface_hub takes them.

    Raises:
        InputError: no such scores, scores that cannot be read, or a folder that holds something else.
    """
    match = _REPOSITORY.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} is no repository; scores are pulled from org/repo[@revision][:alias].")
    place = Place(match["repo"], False, match["revision"], access)
    try:
        source = place.find(match["alias"])
    except NotHere as answer:
        raise InputError(f"cannot pull {name}: {place}: {answer}.") from answer
    scores, out = HeadScores.load(source), Path(out).expanduser()
    names = (*SIDECAR_FILES, GATES_FILE) if HeadGates.beside(source) else SIDECAR_FILES
    contents = {file: (source / file).read_bytes() for file in names}
    present = {path.name: path for path in out.iterdir()} if out.is_dir() else {}
    if all(file in present and present[file].read_bytes() == content for file, content in contents.items()):
        return scores
    if present:  # also the result of another command, which a staged folder would replace
        raise InputError(f"{out} holds {min(present)!r} already; choose another --out.")
    with staged_folder(out) as stage, input_errors(OSError, prefix=f"cannot write to {out}: "):
        for file, content in contents.items():
            (stage / file).write_bytes(content)
    return scores


class NotHere(Exception):
    """A place holds no such sidecar; `certain` is False when the place could not be asked."""

    def __init__(self, reason: str, *, certain: bool = True) -> None:
        super().__init__(reason)
        self.certain = certain


@dataclass(frozen=True)
class Place:
    """A folder or a repository that may hold sidecars, at its root and under `hess/<alias>/`."""

    name: str
    is_folder: bool = False
    revision: str | None = None
    access: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"the folder {self.name}" if self.is_folder else f"{self.name}@{self.revision or 'main'}"

    def find(self, alias: str | None) -> Path:
        """Local folder of `hess/<alias>`; without alias of the root, else of the only alias there is.

        Raises:
            NotHere: with what the place holds instead.
        """
        root, files = self._folder() if self.is_folder else self._repository(alias)
        folders = {path.rpartition("/")[0] for path in files}
        whole = {
            each for each in folders if {f"{each}/{name}".lstrip("/") for name in SIDECAR_FILES} <= files
        }
        aliases = sorted(each.removeprefix("hess/") for each in whole if each)
        if alias is not None:
            wanted = f"hess/{alias}"
        else:
            wanted = f"hess/{aliases[0]}" if "" not in folders and len(aliases) == 1 else ""
        if wanted in whole:
            return root / wanted
        if wanted in folders:
            raise NotHere(f"{wanted or 'its root'} holds only one of {' and '.join(SIDECAR_FILES)}")
        if alias is None and aliases:
            raise NotHere(f"none at its root and several under hess/, name one: {', '.join(aliases)}")
        available = aliases + ["the one at its root (hess=True)"] * ("" in whole)
        raise NotHere(f"no {wanted or 'sidecar'}; available: {', '.join(available) or 'none'}")

    def _folder(self) -> tuple[Path, set[str]]:
        root = Path(self.name).expanduser()
        if not root.is_dir():
            raise NotHere("no such folder")
        found = [path for name in SIDECAR_FILES for path in (root / name, *root.glob(f"hess/*/{name}"))]
        return root, {path.relative_to(root).as_posix() for path in found if path.is_file()}

    def _repository(self, alias: str | None) -> tuple[Path, set[str]]:
        """Snapshot folder of one commit with the sidecars asked for; the names of all sidecar files in it."""
        from huggingface_hub import errors, get_cached_repo_tree, snapshot_download

        uncached = (errors.LocalEntryNotFoundError, errors.CachedRepoTreeNotFoundError)
        names = (*SIDECAR_FILES, GATES_FILE)
        patterns = [f"hess/{alias or '*'}/{name}" for name in names]
        cache_dir = self.access.get("cache_dir")
        try:
            snapshot = Path(
                snapshot_download(
                    self.name,
                    revision=self.revision,
                    allow_patterns=patterns if alias else [*names, *patterns],
                    **self.access,
                )
            )
            # Stored by this or an earlier download: offline, too, it tells "absent" from "not fetched".
            tree = get_cached_repo_tree(self.name, revision=snapshot.name, cache_dir=cache_dir)
        except errors.RevisionNotFoundError as error:
            raise NotHere(f"the revision {self.revision!r} does not exist") from error
        except errors.GatedRepoError as error:
            raise NotHere("gated; ask for access on its page and pass token=") from error
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            reason = "no such repository, or it is private and the token does not open it (token=)"
            raise NotHere(reason) from error
        except errors.HfHubHTTPError as error:  # in the middle of a download
            raise NotHere(f"the Hub answered {error.response.status_code}", certain=False) from error
        except (*uncached, errors.HTTPError) as error:
            reason = "not in the cache, and the Hub was not reached (offline, local_files_only, or down)"
            raise NotHere(reason, certain=False) from error
        return snapshot, {file.path for file in tree if _SIDECAR_PATH.fullmatch(file.path)}


def _places(
    wanted: Any, base: str | os.PathLike[str] | None, revision: str | None, access: dict[str, Any]
) -> Iterator[tuple[Place, str | None]]:
    """The places that a form of `hess=` names, in order, each with the alias to look for there."""
    if wanted is not True and _is_path(wanted):
        yield Place(os.fspath(wanted), is_folder=True), None
    elif wanted is True or _is_alias(wanted):
        alias = None if wanted is True else wanted
        if base is not None:
            name = os.fspath(base)  # a folder wherever the loaders take it for one
            yield Place(name, os.path.isdir(name) or _is_path(base), revision, access), alias
        indexed = KNOWN_SIDECARS.get(wanted, {}).get(str(base)) if alias else None
        if indexed is not None:
            yield from _places(indexed, None, None, access)
    elif match := _REPOSITORY.fullmatch(wanted):
        yield Place(match["repo"], False, match["revision"], access), match["alias"]
    else:
        raise InputError(f"hess={wanted!r} is not a form that is understood; hess= takes {FORMS}.")


def _index_answer(alias: Any, base: str | os.PathLike[str] | None) -> str:
    """What the packaged index says about an alias of a base model, for the error."""
    known = sorted(name for name, models in KNOWN_SIDECARS.items() if str(base) in models)
    found = "an entry" if alias in known else "no entry"
    return f"{found} {alias!r} for this model; it knows: {', '.join(known) or 'none'}"


def _is_path(wanted: Any) -> bool:
    """By type and prefix only: a folder named `co3d` in the working directory must not win over the alias."""
    return isinstance(wanted, os.PathLike) or str(wanted).startswith((".", "/", "~"))


def _is_alias(wanted: Any) -> bool:
    return isinstance(wanted, str) and ALIAS.fullmatch(wanted) is not None
