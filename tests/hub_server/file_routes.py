"""Routes that list and read the files of a commit."""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qs

from .handler import KIND, PREFIX, REPO, REV, Handler, Query
from .repositories import git_blob_sha1


def tree(
    request: Handler,
    body: bytes,
    query: Query,
    kind: str,
    repo_id: str,
    revision: str,
    folder: str | None = None,
) -> None:
    _, commit = request.find_commit(kind, repo_id, revision)
    recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
    prefix = folder.strip("/") + "/" if folder else ""
    out, seen = [], set()
    for path in sorted(p for p in commit.files if p.startswith(prefix)):
        names = path[len(prefix) :].split("/")
        for depth in range(1, len(names) if recursive else min(len(names), 2)):
            name = prefix + "/".join(names[:depth])
            if name not in seen:
                seen.add(name)
                out.append({"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
        if recursive or len(names) == 1:
            out.append(request.hub.describe(path, commit.files[path]))
    if prefix and not out:
        return request.refuse(404, "EntryNotFound", f"{folder} does not exist on {revision!r}")
    request.reply(200, out)


def paths_info(request: Handler, body: bytes, query: Query, kind: str, repo_id: str, revision: str) -> None:
    _, commit = request.find_commit(kind, repo_id, revision)
    try:
        paths = json.loads(body)["paths"]
    except ValueError:  # sent as a form
        paths = parse_qs(body.decode()).get("paths", [])
    paths = [paths] if isinstance(paths, str) else paths
    request.reply(200, [request.hub.describe(p, commit.files[p]) for p in paths if p in commit.files])


def download(
    request: Handler,
    body: bytes,
    query: Query,
    repo_id: str,
    revision: str,
    path: str,
    kind: str | None = None,
) -> None:
    repo, commit = request.find_commit(kind, repo_id, revision)
    stored = commit.files.get(path)
    if stored is None:
        return request.refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.oid})
    data = request.hub.content(stored)
    headers = {
        "X-Repo-Commit": commit.oid,
        "Accept-Ranges": "bytes",
        "ETag": f'"{stored.sha256 or git_blob_sha1(data)}"',
    }
    if stored.sha256:
        headers.update({"X-Linked-Etag": f'"{stored.sha256}"', "X-Linked-Size": str(stored.size)})
    if path == "config.json":
        repo.downloads += 1
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if span:
        first, end = int(span[1]), min(int(span[2]) + 1, len(data)) if span[2] else len(data)
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
        return request.reply(206, data[first:end], headers)
    request.reply(200, data, headers)


ROUTES = [
    ("POST", rf"/api/{KIND}/{REPO}/paths-info/{REV}", paths_info),
    ("GET", rf"/api/{KIND}/{REPO}/tree/{REV}(?:/(?P<folder>.*))?", tree),
    ("GET|HEAD", rf"{PREFIX}/{REPO}/resolve/{REV}/(?P<path>.+)", download),
]
