"""Routes of accounts and of repositories as a whole: create, delete, list and describe."""

from __future__ import annotations

import json
import re

from .handler import KIND, REPO, REV, Handler, Query
from .hub import Hub
from .repositories import Commit, Repo


def read_front_matter(text: str) -> dict | None:
    """Top-level `key: scalar`, `key: [a, b]` and `key:` + `- item` lines of a card's YAML block."""
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.S)
    if match is None:
        return None
    unquoted = lambda s: s.strip().strip("'\"")  # noqa: E731
    card: dict = {}
    key = None
    for line in match[1].splitlines():
        pair = re.match(r"([\w.-]+):\s*(.*)$", line)
        item = re.match(r"\s*-\s+(.*)$", line)
        if pair:
            key, value = pair[1], pair[2].strip()
            if value.startswith("[") and value.endswith("]"):
                card[key] = [unquoted(v) for v in value[1:-1].split(",") if v.strip()]
            elif value:
                card[key] = unquoted(value)
        elif item and key is not None and not re.match(r"[\w.-]+:(\s|$)", item[1]):
            if isinstance(card.setdefault(key, []), list):
                card[key].append(unquoted(item[1]))
        elif line.strip() and not isinstance(card.get(key), str):
            card.pop(key, None)  # nested mapping (for example model-index): left out
            key = None
    return card


def info_of(hub: Hub, repo: Repo, commit: Commit) -> dict:
    card = None
    if "README.md" in commit.files:
        card = read_front_matter(hub.content(commit.files["README.md"]).decode("utf-8", "replace"))
    about = card or {}
    as_list = lambda value: [value] if isinstance(value, str) else list(value or [])  # noqa: E731
    tags = as_list(about.get("library_name")) + as_list(about.get("tags"))
    tags += [f"base_model:{name}" for name in as_list(about.get("base_model"))]
    return {
        "_id": "0" * 24,
        "id": repo.repo_id,
        "modelId": repo.repo_id,
        "author": repo.repo_id.split("/")[0],
        "sha": commit.oid,
        "lastModified": commit.date,
        "createdAt": commit.date,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": repo.downloads,
        "likes": 0,
        "tags": tags,
        "cardData": card,
        "library_name": about.get("library_name"),
        "pipeline_tag": about.get("pipeline_tag"),
        "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        "spaces": [],
    }


def whoami(request: Handler, body: bytes, query: Query) -> None:
    request.check_token()
    request.reply(
        200,
        {
            "type": "user",
            "name": request.hub.user,
            "orgs": [{"name": o} for o in request.hub.orgs],
            "auth": {"type": "access_token"},
        },
    )


def organization(request: Handler, body: bytes, query: Query, name: str) -> None:
    request.reply(
        200,
        {
            "name": name,
            "fullname": name,
            "avatarUrl": "",
            "trustedKernelPublisher": name in request.hub.trusted_publishers,
        },
    )


def create_repo(request: Handler, body: bytes, query: Query) -> None:
    request.check_token()
    wanted = json.loads(body)
    repo_type = wanted.get("type") or "model"
    repo_id = f"{wanted.get('organization') or request.hub.user}/{wanted['name']}"
    url = request.repo_url(repo_type + "s", repo_id)
    if (repo_type, repo_id) in request.hub.repos:
        return request.reply(409, {"error": "You already created this repo", "url": url})
    request.hub.create(
        repo_id, repo_type, wanted.get("visibility") == "private" or bool(wanted.get("private"))
    )
    request.reply(200, {"url": url, "name": repo_id, "id": "0" * 24})


def delete_repo(request: Handler, body: bytes, query: Query) -> None:
    request.check_token()
    wanted = json.loads(body)
    repo_id = f"{wanted.get('organization') or request.hub.user}/{wanted['name']}"
    if request.hub.repos.pop((wanted.get("type") or "model", repo_id), None) is None:
        return request.refuse(404, "RepoNotFound")
    request.reply(200, b"OK")


def list_repos(request: Handler, body: bytes, query: Query, kind: str) -> None:
    out = []
    for (repo_type, repo_id), repo in request.hub.repos.items():
        if repo_type + "s" != kind or (repo.private and not request.has_token()):
            continue
        if query.get("author", [repo_id.split("/")[0]])[0] != repo_id.split("/")[0]:
            continue
        if query.get("search", [""])[0] not in repo_id:
            continue
        info = info_of(request.hub, repo, repo.resolve("main"))
        if set(query.get("filter", [])) <= set(info["tags"]):
            out.append(info)
    request.reply(200, out)


def repo_info(
    request: Handler, body: bytes, query: Query, kind: str, repo_id: str, revision: str = "main"
) -> None:
    request.reply(200, info_of(request.hub, *request.find_commit(kind, repo_id, revision)))


ROUTES = [
    ("GET", r"/api/whoami-v2", whoami),
    ("GET", r"/api/organizations/(?P<name>[^/]+)/overview", organization),
    ("POST", r"/api/repos/create", create_repo),
    ("DELETE", r"/api/repos/delete", delete_repo),
    ("GET", rf"/api/{KIND}", list_repos),
    ("GET", rf"/api/{KIND}/{REPO}/revision/{REV}", repo_info),
    ("GET", rf"/api/{KIND}/{REPO}", repo_info),
]
