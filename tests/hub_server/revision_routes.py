"""Routes of branches and tags."""

from __future__ import annotations

import json

from .handler import KIND, REPO, REV, Handler, Query


def list_refs(request: Handler, body: bytes, query: Query, kind: str, repo_id: str) -> None:
    repo = request.find_repo(kind, repo_id)
    entry = lambda prefix, name, oid: {"name": name, "ref": prefix + name, "targetCommit": oid}  # noqa: E731
    request.reply(
        200,
        {
            "branches": [
                entry("refs/heads/", n, o) for n, o in repo.branches.items() if not n.startswith("refs/")
            ],
            "tags": [entry("refs/tags/", n, o) for n, o in repo.tags.items()],
            "converts": [],
        },
    )


def create_branch(
    request: Handler, body: bytes, query: Query, kind: str, repo_id: str, revision: str
) -> None:
    request.check_token()
    start_at = json.loads(body or b"{}").get("startingPoint") or "main"
    repo, start = request.find_commit(kind, repo_id, start_at)
    if revision in repo.branches:
        return request.reply(409, {"error": f"Reference already exists: {revision}"})
    repo.branches[revision] = start.oid
    request.reply(200, b"OK")


def create_tag(request: Handler, body: bytes, query: Query, kind: str, repo_id: str, revision: str) -> None:
    request.check_token()
    repo, commit = request.find_commit(kind, repo_id, revision)
    tag = json.loads(body)["tag"]
    if tag in repo.tags:
        return request.reply(409, {"error": f"Tag reference exists already: {tag}"})
    repo.tags[tag] = commit.oid
    request.reply(200, b"OK")


ROUTES = [
    ("POST", rf"/api/{KIND}/{REPO}/branch/{REV}", create_branch),
    ("POST", rf"/api/{KIND}/{REPO}/tag/{REV}", create_tag),
    ("GET", rf"/api/{KIND}/{REPO}/refs", list_refs),
]
