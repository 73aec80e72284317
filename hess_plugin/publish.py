"""Share scores: the two files with their card and its picture, in one commit.

In a repository of their own they lie at its root, in a model's repository under `hess/<alias>/`, the card
too: the README of a model is its author's.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .card import card_files
from .errors import InputError
from .evaluation.measurements import read_measurements
from .gates import HeadGates
from .scores import HeadScores
from .sidecar import ALIAS, REPOSITORY_NAME
from .upload import Pushed, upload


def push_to_hub(
    scores: HeadScores,
    repo_id: str,
    *,
    gates: HeadGates | None = None,
    alias: str | None = None,
    evaluation: str | os.PathLike[str] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> Pushed:
    """Push scores with their card; what is there already is not pushed again.

    Args:
        scores: to push.
        repo_id: "user/name". Without alias the repository is made if there is none.
        gates: of the same calibration, for head pruning; they go beside the scores.
        alias: name of the scores in the model repository `repo_id`, which must be there.
        evaluation: file of measurements for the card, see `evaluation.measurements`.
        private: of a new repository; one that is there must be as said. None is the Hub's default.
        revision: branch, made if there is none; None is "main".
        create_pr: propose the commit as a pull request.
        token: as huggingface_hub takes it; None uses the login or HF_TOKEN.
        commit_message: of the commit.

    Raises:
        InputError: an impossible name, a file of measurements that cannot be read, or a refusal of the Hub.
        ImportError: jinja2 or matplotlib is missing; names the extra to install.
    """
    if not REPOSITORY_NAME.fullmatch(repo_id):
        raise InputError(f"{repo_id!r} is no repository; scores are pushed to 'user/name'.")
    if alias is not None and not ALIAS.fullmatch(alias):
        raise InputError(f"alias must be letters, digits, '.', '_' and '-', got {alias!r}.")
    measurements = [] if evaluation is None else read_measurements(evaluation)
    with tempfile.TemporaryDirectory() as folder:
        scores.save(folder)
        if gates is not None:
            gates.save(Path(folder))
        files = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    files |= card_files(scores, repo_id, alias, measurements)
    return upload(
        repo_id,
        {f"hess/{alias}/{name}" if alias else name: content for name, content in files.items()},
        commit_message or f"Upload HeSS scores ({scores.info.dataset})",
        create_repo=alias is None,
        private=private,
        revision=revision,
        create_pr=create_pr,
        token=token,
    )
