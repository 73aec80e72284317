"""Routes of an upload: what goes where, the bytes of large files (LFS), then one commit."""

from __future__ import annotations

import base64
import hashlib
import json

from .handler import KIND, PREFIX, REPO, REV, Handler, Query
from .repositories import StoredFile, git_blob_sha1


def validate_yaml(request: Handler, body: bytes, query: Query) -> None:
    request.reply(200, {"errors": [], "warnings": []})


def preupload(request: Handler, body: bytes, query: Query, kind: str, repo_id: str, revision: str) -> None:
    request.check_token()
    _, commit = request.find_commit(kind, repo_id, revision)
    out = []
    for item in json.loads(body)["files"]:
        present = commit.files.get(item["path"])
        # oid of the present file, sha256 for LFS and git blob sha1 otherwise: the client skips equal ones
        oid = None if present is None else present.sha256 or git_blob_sha1(present.data)
        mode = "lfs" if request.hub.is_lfs(item["path"], item["size"]) else "regular"
        out.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    request.reply(200, {"files": out})


def lfs_batch(request: Handler, body: bytes, query: Query, repo_id: str, kind: str | None = None) -> None:
    request.check_token()
    objects = []
    for item in json.loads(body)["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in request.hub.lfs_objects:  # without `actions` the client uploads nothing
            answer["actions"] = {
                "upload": {"href": f"{request.hub.url}/_lfs/{item['oid']}", "header": {}},
                "verify": {"href": f"{request.hub.url}/_lfs-verify", "header": {}},
            }
        objects.append(answer)
    request.reply(
        200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}
    )


def lfs_put(request: Handler, body: bytes, query: Query, oid: str) -> None:
    if hashlib.sha256(body).hexdigest() != oid:
        return request.refuse(400, "BadDigest", "sha256 mismatch")
    request.hub.lfs_objects[oid] = body
    request.reply(200)


def lfs_verify(request: Handler, body: bytes, query: Query) -> None:
    wanted = json.loads(body)
    good = len(request.hub.lfs_objects.get(wanted["oid"], b"")) == wanted["size"]
    request.reply(200 if good else 404, {"message": "ok" if good else "missing"})


def create_commit(
    request: Handler, body: bytes, query: Query, kind: str, repo_id: str, revision: str
) -> None:
    request.check_token()
    repo = request.find_repo(kind, repo_id)
    header, added, deleted, folders = {}, {}, [], []
    for line in body.splitlines():
        item = json.loads(line)
        key, value = item["key"], item["value"]
        if key == "header":
            header = value
        elif key == "file":
            data = base64.b64decode(value["content"])
            added[value["path"]] = StoredFile(len(data), data=data)
        elif key == "lfsFile":
            if value["oid"] not in request.hub.lfs_objects:
                return request.refuse(400, "LfsMissing", f"LFS object {value['oid']} was not uploaded")
            size = len(request.hub.lfs_objects[value["oid"]])
            added[value["path"]] = StoredFile(size, sha256=value["oid"])
        elif key == "deletedFile":
            deleted.append(value["path"])
        elif key == "deletedFolder":
            folders.append(value["path"])
        else:
            return request.refuse(400, "UnknownOperation", f"commit line {key!r} is not supported")
    head = repo.branches.get(revision)
    if head is None and "create_pr" not in query:
        return request.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    if header.get("parentCommit") and header["parentCommit"] != head:
        return request.reply(412, {"error": "A commit has happened since. Please refresh and try again."})
    out = {"success": True, "hookOutput": ""}
    if "create_pr" in query:
        number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
        revision = f"refs/pr/{number}"
        out["pullRequestUrl"] = f"{request.repo_url(kind, repo_id)}/discussions/{number}"
    oid = request.hub.commit(
        repo, revision, header.get("summary", ""), header.get("description", ""), added, deleted, folders
    )
    out.update(commitUrl=f"{request.repo_url(kind, repo_id)}/commit/{oid}", commitOid=oid)
    request.reply(200, out)


ROUTES = [
    ("POST", r"/api/validate-yaml", validate_yaml),
    ("POST", rf"/api/{KIND}/{REPO}/preupload/{REV}", preupload),
    ("POST", rf"/api/{KIND}/{REPO}/commit/{REV}", create_commit),
    ("POST", rf"{PREFIX}/{REPO}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("POST", r"/_lfs-verify", lfs_verify),
]
