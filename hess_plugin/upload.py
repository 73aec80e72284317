"""One commit on a hub. Only this module and `sidecar` open the network.

The commit names the one that it follows, so that of two pushes at the same time the second is refused; until
it is made, the repository holds what it held before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from .errors import InputError

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
# What an answer of the Hub means, and what helps.
_ANSWERS = {
    401: "it does not know you; log in with `hf auth login`, set HF_TOKEN or pass token=",
    403: "you may not write there; use a token with write access or a repository of your own, or propose the "
    "change by a pull request (create_pr=True, --create-pr)",
    404: "there is no such repository, or your token does not open it; make it first, or push without alias= "
    "to a repository of the scores' own",
    409: "somebody else is changing it; push again",
    412: "somebody else pushed at the same time and nothing of yours was written; push again",
}
_UNAVAILABLE = (
    "it is not available; push again later, the repository is whole whether this push arrived or not"
)


class Pushed(NamedTuple):
    """What a push did."""

    url: str  # page of the commit, or of the pull request
    commit: str  # that holds the files
    changed: bool  # False: the very same was there, and no commit was made


def upload(
    repo_id: str,
    files: Mapping[str, bytes],
    message: str,
    *,
    create_repo: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> Pushed:
    """Add files to a model repository, in one commit, or in none if it holds the same bytes.

    Args:
        repo_id: "user/name".
        files: contents by path.
        message: of the commit.
        create_repo: the repository is the files' own: it is made if there is none, and must not be a model's.
        private: of a new repository; one that is there must be as said. None is the Hub's default.
        revision: branch, made if there is none; None is "main".
        create_pr: propose the commit as a pull request.
        token: as huggingface_hub takes it; None uses the login or HF_TOKEN.

    Raises:
        InputError: the Hub refuses or is not reached; one line with the cause and the cure.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=token)
    with _refusals(repo_id):
        if create_repo:
            api.create_repo(repo_id, private=private, exist_ok=True)
        info = _repository(api, repo_id, revision)
        _check(info, files, own=create_repo, private=private)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=info.sha,
        )
    return Pushed(commit.pr_url or commit.commit_url, commit.oid, commit.oid != info.sha)


def _repository(api: HfApi, repo_id: str, revision: str | None) -> ModelInfo:
    """What the push follows; a branch that is missing is made, as pushes of models do."""
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        return api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        api.create_branch(repo_id, branch=str(revision))
        return api.model_info(repo_id, revision=revision)


def _check(info: ModelInfo, files: Mapping[str, bytes], own: bool, private: bool | None) -> None:
    """Refuse what the user cannot have meant: public where private was said, a card in place of a model's."""
    if private is not None and bool(info.private) != private:
        state = "private" if info.private else "public"
        raise InputError(
            f"{info.id} is there already and {state}, private={private} does not change that; change it on "
            "its settings page, or push without private."
        )
    others = [each.rfilename for each in info.siblings or [] if each.rfilename not in files]
    for name in others if own else []:
        if name == "config.json" or (name.endswith(_WEIGHTS) and "/" not in name):
            raise InputError(
                f"{info.id} is the repository of a model (it holds {name}), whose card would be replaced; "
                "give the scores a name in it with alias= (--alias)."
            )


@contextmanager
def _refusals(repo_id: str) -> Iterator[None]:
    """Turn every answer of the Hub that is no success into one line."""
    from huggingface_hub import errors

    cause: Exception
    try:
        yield
        return
    except errors.RevisionNotFoundError as error:
        cause, reason = error, "only a branch can be pushed to, not a tag or a commit"
    except errors.HfHubHTTPError as error:
        cause, status = error, error.response.status_code
        unknown = _UNAVAILABLE if status >= 500 or status == 429 else str(error)
        reason = f"the Hub answers {status}: {_ANSWERS.get(status, unknown)}"
    except errors.LocalTokenNotFoundError as error:
        cause, reason = error, _ANSWERS[401]
    except errors.HFValidationError as error:
        cause, reason = error, str(error)
    except (errors.OfflineModeIsEnabled, errors.HTTPError) as error:
        cause, reason = error, f"the Hub was not reached ({error})"
    raise InputError(f"cannot push to {repo_id}: {reason}.") from cause
