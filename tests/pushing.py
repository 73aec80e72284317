"""Helpers of the push tests."""

from __future__ import annotations

import pytest
from hub_server import HubServer

from hess_plugin import HeadScores
from hess_plugin.errors import InputError
from hess_plugin.publish import push_to_hub

REPO, MODEL = "tester/scores", "org/model"


def head(hub: HubServer, repo_id: str = REPO, branch: str = "main") -> str:
    return hub.repos["model", repo_id].branches[branch]


def refused(scores: HeadScores, repo_id: str = REPO, **options: object) -> str:
    """The one line with which a push is refused."""
    with pytest.raises(InputError) as caught:
        push_to_hub(scores, repo_id, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
