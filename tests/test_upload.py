"""What the Hub can answer to a push: each is one line, and the repository stays whole."""

from __future__ import annotations

import huggingface_hub
import pytest
from doubles import TinyVGGT
from hub_server import HubServer
from pushing import MODEL, REPO, head, refused
from sidecars import found, scores_of

from hess_plugin import HeadScores
from hess_plugin.publish import push_to_hub


@pytest.fixture(scope="module")
def scores() -> HeadScores:
    return scores_of(TinyVGGT(), "co3d")


@pytest.fixture
def other() -> HeadScores:
    return scores_of(TinyVGGT(), "dtu")


def test_name_that_only_the_library_refuses(hub, scores):
    assert "cannot push to a--b/scores: Cannot have -- or .." in refused(scores, "a--b/scores")


def test_no_token(hub, scores):
    message = refused(scores, token=False)
    assert message == (
        f"cannot push to {REPO}: the Hub answers 401: it does not know you; log in with `hf auth login`, "
        "set HF_TOKEN or pass token=."
    )
    assert refused(scores, token="hf_wrong") == message
    assert not hub.repos


def test_no_token_stored(hub, scores, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "it does not know you; log in" in refused(scores, token=True)


def test_private_repository_of_somebody(hub, scores):
    hub.put(MODEL, {"config.json": b"{}"})
    hub.repos["model", MODEL].private = True
    assert "the Hub answers 401" in refused(scores, MODEL, alias="x", token=False)


@pytest.mark.parametrize(
    ("route", "status", "said"),
    [
        ("preupload", 403, "you may not write there; use a token with write access"),
        ("commit", 403, "you may not write there; use a token with write access"),
        ("commit", 404, "there is no such repository"),
        ("commit", 409, "somebody else is changing it; push again"),
        ("commit", 418, "Client error '418"),
        ("commit", 429, "it is not available; push again later"),
        ("commit", 500, "it is not available; push again later"),
    ],
)
def test_every_answer_is_one_line(hub, scores, other, route, status, said):
    push_to_hub(scores, REPO)
    before = head(hub)
    hub.fail_next(rf"POST .*/{route}/", status, times=10)
    assert f"cannot push to {REPO}: the Hub answers {status}: {said}" in refused(other)
    assert head(hub) == before
    assert found(REPO) == "co3d"


def test_short_failures_are_retried(hub, scores):
    hub.fail_next(r"POST .*/preupload/", 503)
    assert push_to_hub(scores, REPO).changed


def test_unavailable_at_the_commit(hub, scores, other):
    """The files have arrived, the commit has not: readers see the old scores, a second push is enough."""
    push_to_hub(scores, REPO)
    hub.fail_next(r"POST .*/commit/", 503)
    assert "the Hub answers 503: it is not available; push again later" in refused(other)
    assert found(REPO) == "co3d"
    assert push_to_hub(other, REPO).changed
    assert found(REPO) == "dtu"


def test_two_pushes_at_once(hub, scores, other, monkeypatch):
    push_to_hub(scores, REPO)
    commit = huggingface_hub.HfApi.create_commit

    def late(self: huggingface_hub.HfApi, *args: object, **kwargs: object) -> object:
        hub.put(REPO, {"theirs.txt": b"first"})
        return commit(self, *args, **kwargs)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", late)
    assert "the Hub answers 412: somebody else pushed at the same time" in refused(other)
    monkeypatch.undo()
    assert found(REPO) == "co3d"
    assert hub.read(REPO, "theirs.txt") == b"first"
    assert push_to_hub(other, REPO).changed


def test_offline(hub, scores, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in refused(scores)


def test_server_gone(scores, monkeypatch):
    with HubServer() as gone:
        url = gone.url
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    assert "the Hub was not reached" in refused(scores)
