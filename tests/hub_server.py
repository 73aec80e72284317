"""A small Hub-compatible HTTP server for offline tests. Standard library only, everything in memory.

It answers the requests that huggingface_hub 2.4 sends for create_repo, upload_file, upload_folder,
create_commit (with parent_commit and create_pr), hf_hub_download, snapshot_download, model_info,
list_repo_files, list_repo_refs, create_tag, create_branch, list_models, delete_repo and ModelCard,
for the repository types model, dataset, space and kernel. Regular files travel inside the commit,
large ones through the LFS routes. There is no Xet route: set HF_HUB_DISABLE_XET=1 in the client,
or uploads fail at `xet-write-token`.

huggingface_hub reads its environment at import: the root conftest.py starts the server, sets the
environment first and gives tests the fixture `hub`:

    def test_round_trip(hub):
        api = huggingface_hub.HfApi()
        repo_id = api.create_repo("demo").repo_id                     # "tester/demo"
        api.upload_file(path_or_fileobj=b"{}", path_in_repo="hess_config.json", repo_id=repo_id)
        assert hub.read(repo_id, "hess_config.json") == b"{}"         # what the server holds
        assert f"POST /api/models/{repo_id}/commit/main" in hub.calls()

The fixture empties the client's cache too: with a filled cache a download is a HEAD request only,
and server errors do not show. Faults: `hub.fail_next(r"preupload", 503)` answers
the next matching request with that status.

Simplifications: a file is LFS when its suffix is in LFS_SUFFIXES or its size reaches `lfs_threshold`
(the real Hub looks at .gitattributes and at the content); one token opens everything; card metadata
is read by a minimal front-matter reader (top-level scalars and lists of scalars only).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
import traceback
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz", ".ply")
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def git_blob_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


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


@dataclass
class StoredFile:
    size: int
    data: bytes | None = None  # regular file
    sha256: str | None = None  # LFS file; the bytes are in HubServer.lfs_objects


@dataclass
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    date: str
    files: dict[str, StoredFile]


@dataclass
class Repo:
    repo_id: str
    repo_type: str = "model"
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)  # name (or refs/pr/N) -> commit
    tags: dict[str, str] = field(default_factory=dict)
    downloads: int = 0  # GET and HEAD of config.json, the Hub's default rule

    def resolve(self, revision: str) -> Commit | None:
        """Commit of a branch, tag, full commit hash or unique prefix of at least 7 digits."""
        oid = self.branches.get(revision) or self.tags.get(revision)
        if oid is None and len(revision) >= 7:
            hits = [known for known in self.commits if known.startswith(revision)]
            oid = hits[0] if len(hits) == 1 else None
        return self.commits.get(oid) if oid else None


class HubServer:
    def __init__(
        self,
        *,
        port: int = 0,
        token: str = "hf_test",
        user: str = "tester",
        orgs: tuple[str, ...] = ("tester-org",),
        lfs_threshold: int = 10 * 1024 * 1024,
    ):
        self.token, self.user, self.orgs, self.lfs_threshold = token, user, orgs, lfs_threshold
        self.trusted_publishers: set[str] = set()  # owners whose kernels need no trust_remote_code
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[dict] = []  # method, path, body, headers
        self._faults: list[list] = []  # [pattern, status, times left]
        self._port = port
        self.lock = threading.RLock()

    # ------------------------------------------------------------------ use from a test
    def start(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> HubServer:
        return self.start()

    def __exit__(self, *exc) -> None:
        self.stop()

    def environ(self, hf_home: str | None = None) -> dict[str, str]:
        """Client environment; must be in place before huggingface_hub is imported."""
        env = {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HUB_DISABLE_XET": "1"}
        if hf_home is not None:
            env["HF_HOME"] = str(hf_home)
        return env

    def reset(self) -> None:
        with self.lock:
            for store in (self.repos, self.lfs_objects, self.requests, self._faults, self.trusted_publishers):
                store.clear()

    def calls(self) -> list[str]:
        """The requests so far as "METHOD /path?query"."""
        return [f"{r['method']} {r['path']}" for r in self.requests]

    def fail_next(self, pattern: str, status: int, times: int = 1) -> None:
        """Answer the next `times` requests whose "METHOD /path" matches the regex with `status`."""
        self._faults.append([pattern, status, times])

    def put(
        self, repo_id: str, files: dict[str, bytes], *, repo_type: str = "model", revision: str = "main"
    ) -> str:
        """Commit files on the server without a client; creates the repository. Returns the commit."""
        with self.lock:
            repo = self.repos.get((repo_type, repo_id)) or self.create(repo_id, repo_type)
            return self.commit(repo, revision, "put", "", {p: self.store(p, d) for p, d in files.items()})

    def files(self, repo_id: str, *, repo_type: str = "model", revision: str = "main") -> list[str]:
        return sorted(self.repos[repo_type, repo_id].resolve(revision).files)

    def read(self, repo_id: str, path: str, *, repo_type: str = "model", revision: str = "main") -> bytes:
        return self.content(self.repos[repo_type, repo_id].resolve(revision).files[path])

    # ------------------------------------------------------------------ storage
    def is_lfs(self, path: str, size: int) -> bool:
        return path.endswith(LFS_SUFFIXES) or size >= self.lfs_threshold

    def store(self, path: str, data: bytes) -> StoredFile:
        if not self.is_lfs(path, len(data)):
            return StoredFile(len(data), data=data)
        oid = hashlib.sha256(data).hexdigest()
        self.lfs_objects[oid] = data
        return StoredFile(len(data), sha256=oid)

    def content(self, stored: StoredFile) -> bytes:
        return stored.data if stored.data is not None else self.lfs_objects[stored.sha256]

    def create(self, repo_id: str, repo_type: str = "model", private: bool = False) -> Repo:
        repo = self.repos[repo_type, repo_id] = Repo(repo_id, repo_type, private)
        first = StoredFile(len(GITATTRIBUTES), data=GITATTRIBUTES)
        self.commit(repo, "main", "initial commit", "", {".gitattributes": first})
        return repo

    def commit(
        self,
        repo: Repo,
        branch: str,
        title: str,
        message: str,
        added: dict[str, StoredFile],
        deleted: tuple | list = (),
        deleted_folders: tuple | list = (),
    ) -> str:
        parent = repo.branches.get(branch) or repo.branches.get("main")
        files = dict(repo.commits[parent].files) if parent else {}
        for path in deleted:
            files.pop(path, None)
        for folder in deleted_folders:
            files = {p: f for p, f in files.items() if not p.startswith(folder.rstrip("/") + "/")}
        files.update(added)
        oid = hashlib.sha1(repr((parent, title, sorted(files), time.time_ns())).encode()).hexdigest()
        date = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        repo.commits[oid] = Commit(oid, parent, title, message, date, files)
        repo.branches[branch] = oid
        return oid

    def describe(self, path: str, stored: StoredFile) -> dict:
        """One entry of a tree or paths-info answer."""
        out = {"type": "file", "path": path, "size": stored.size}
        if stored.sha256 is None:
            out["oid"] = git_blob_sha1(stored.data)
        else:
            pointer = (
                f"version https://git-lfs.github.com/spec/v1\n"
                f"oid sha256:{stored.sha256}\nsize {stored.size}\n"
            ).encode()
            out["oid"] = git_blob_sha1(pointer)
            out["lfs"] = {"oid": stored.sha256, "size": stored.size, "pointerSize": len(pointer)}
        return out


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    # ------------------------------------------------------------------ plumbing
    def log_message(self, *args):
        pass

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def reply(self, status: int, payload=b"", headers: dict | None = None):
        headers = dict(headers or {})
        if not isinstance(payload, bytes):
            payload = json.dumps(payload).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def refuse(self, status: int, code: str, message: str = "", headers: dict | None = None):
        """An error the client can name: X-Error-Code selects the exception class."""
        message = message or code
        self.reply(
            status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        )

    def dispatch(self):
        body = self.read_body()
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        hub = self.hub
        with hub.lock:
            hub.requests.append(
                {"method": self.command, "path": self.path, "body": body, "headers": dict(self.headers)}
            )
            for fault in hub._faults:
                if re.search(fault[0], f"{self.command} {self.path}"):
                    fault[2] -= 1
                    if fault[2] <= 0:
                        hub._faults.remove(fault)
                    return self.reply(fault[1], {"error": "injected fault"})
            for methods, pattern, function in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in methods.split("|"):
                    parts = {k: unquote(v) if v else v for k, v in match.groupdict().items()}
                    try:
                        return function(self, body, query, **parts)
                    except Exception:  # a bug here must be visible in the client's error text
                        return self.reply(500, {"error": traceback.format_exc()})
        self.refuse(404, "NotFound", f"no route for {self.command} {url.path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = dispatch

    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def may_write(self) -> bool:
        if self.has_token():
            return True
        self.reply(401, {"error": "Invalid username or password."})
        return False

    def find_repo(self, kind: str | None, repo_id: str) -> Repo | None:
        repo = self.hub.repos.get(((kind or "models").rstrip("s"), repo_id))
        if repo is not None and (self.has_token() or not repo.private):
            return repo
        self.refuse(404 if repo is None else 401, "RepoNotFound", "Repository not found")
        return None

    def find_commit(self, kind: str | None, repo_id: str, revision: str) -> tuple[Repo | None, Commit | None]:
        repo = self.find_repo(kind, repo_id)
        commit = repo.resolve(revision) if repo else None
        if repo and commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo, commit

    def repo_url(self, kind: str, repo_id: str) -> str:
        return f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"

    # ------------------------------------------------------------------ account and repositories
    def whoami(self, body, query):
        if self.may_write():
            self.reply(
                200,
                {
                    "type": "user",
                    "name": self.hub.user,
                    "orgs": [{"name": o} for o in self.hub.orgs],
                    "auth": {"type": "access_token"},
                },
            )

    def organization(self, body, query, name):
        self.reply(
            200,
            {
                "name": name,
                "fullname": name,
                "avatarUrl": "",
                "trustedKernelPublisher": name in self.hub.trusted_publishers,
            },
        )

    def create_repo(self, body, query):
        if not self.may_write():
            return
        wanted = json.loads(body)
        repo_type = wanted.get("type") or "model"
        repo_id = f"{wanted.get('organization') or self.hub.user}/{wanted['name']}"
        url = self.repo_url(repo_type + "s", repo_id)
        if (repo_type, repo_id) in self.hub.repos:
            return self.reply(409, {"error": "You already created this repo", "url": url})
        self.hub.create(
            repo_id, repo_type, wanted.get("visibility") == "private" or bool(wanted.get("private"))
        )
        self.reply(200, {"url": url, "name": repo_id, "id": "0" * 24})

    def delete_repo(self, body, query):
        if not self.may_write():
            return
        wanted = json.loads(body)
        repo_id = f"{wanted.get('organization') or self.hub.user}/{wanted['name']}"
        if self.hub.repos.pop((wanted.get("type") or "model", repo_id), None) is None:
            return self.refuse(404, "RepoNotFound")
        self.reply(200, b"OK")

    def list_repos(self, body, query, kind):
        out = []
        for (repo_type, repo_id), repo in self.hub.repos.items():
            if repo_type + "s" != kind or (repo.private and not self.has_token()):
                continue
            if query.get("author", [repo_id.split("/")[0]])[0] != repo_id.split("/")[0]:
                continue
            if query.get("search", [""])[0] not in repo_id:
                continue
            info = self.info_of(repo, repo.resolve("main"))
            if set(query.get("filter", [])) <= set(info["tags"]):
                out.append(info)
        self.reply(200, out)

    # ------------------------------------------------------------------ upload
    def validate_yaml(self, body, query):
        self.reply(200, {"errors": [], "warnings": []})

    def preupload(self, body, query, kind, repo_id, revision):
        if not self.may_write():
            return
        _, commit = self.find_commit(kind, repo_id, revision)
        if commit is None:
            return
        out = []
        for item in json.loads(body)["files"]:
            present = commit.files.get(item["path"])
            # oid of the present file, sha256 for LFS and git blob sha1 otherwise: the client skips equal ones
            oid = None if present is None else present.sha256 or git_blob_sha1(present.data)
            mode = "lfs" if self.hub.is_lfs(item["path"], item["size"]) else "regular"
            out.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply(200, {"files": out})

    def lfs_batch(self, body, query, repo_id, kind=None):
        if not self.may_write():
            return
        objects = []
        for item in json.loads(body)["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.lfs_objects:  # without `actions` the client uploads nothing
                answer["actions"] = {
                    "upload": {"href": f"{self.hub.url}/_lfs/{item['oid']}", "header": {}},
                    "verify": {"href": f"{self.hub.url}/_lfs-verify", "header": {}},
                }
            objects.append(answer)
        self.reply(
            200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}
        )

    def lfs_put(self, body, query, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self.refuse(400, "BadDigest", "sha256 mismatch")
        self.hub.lfs_objects[oid] = body
        self.reply(200)

    def lfs_verify(self, body, query):
        wanted = json.loads(body)
        good = len(self.hub.lfs_objects.get(wanted["oid"], b"")) == wanted["size"]
        self.reply(200 if good else 404, {"message": "ok" if good else "missing"})

    def create_commit(self, body, query, kind, repo_id, revision):
        if not self.may_write():
            return
        repo = self.find_repo(kind, repo_id)
        if repo is None:
            return
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
                if value["oid"] not in self.hub.lfs_objects:
                    return self.refuse(400, "LfsMissing", f"LFS object {value['oid']} was not uploaded")
                size = len(self.hub.lfs_objects[value["oid"]])
                added[value["path"]] = StoredFile(size, sha256=value["oid"])
            elif key == "deletedFile":
                deleted.append(value["path"])
            elif key == "deletedFolder":
                folders.append(value["path"])
            else:
                return self.refuse(400, "UnknownOperation", f"commit line {key!r} is not supported")
        head = repo.branches.get(revision)
        if head is None and "create_pr" not in query:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if header.get("parentCommit") and header["parentCommit"] != head:
            return self.reply(412, {"error": "A commit has happened since. Please refresh and try again."})
        out = {"success": True, "hookOutput": ""}
        if "create_pr" in query:
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
            revision = f"refs/pr/{number}"
            out["pullRequestUrl"] = f"{self.repo_url(kind, repo_id)}/discussions/{number}"
        oid = self.hub.commit(
            repo, revision, header.get("summary", ""), header.get("description", ""), added, deleted, folders
        )
        out.update(commitUrl=f"{self.repo_url(kind, repo_id)}/commit/{oid}", commitOid=oid)
        self.reply(200, out)

    # ------------------------------------------------------------------ revisions
    def list_refs(self, body, query, kind, repo_id):
        repo = self.find_repo(kind, repo_id)
        if repo is None:
            return
        entry = lambda prefix, name, oid: {"name": name, "ref": prefix + name, "targetCommit": oid}  # noqa: E731
        self.reply(
            200,
            {
                "branches": [
                    entry("refs/heads/", n, o) for n, o in repo.branches.items() if not n.startswith("refs/")
                ],
                "tags": [entry("refs/tags/", n, o) for n, o in repo.tags.items()],
                "converts": [],
            },
        )

    def create_branch(self, body, query, kind, repo_id, revision):
        if not self.may_write():
            return
        repo, start = self.find_commit(
            kind, repo_id, (json.loads(body or b"{}")).get("startingPoint") or "main"
        )
        if start is None:
            return
        if revision in repo.branches:
            return self.reply(409, {"error": f"Reference already exists: {revision}"})
        repo.branches[revision] = start.oid
        self.reply(200, b"OK")

    def create_tag(self, body, query, kind, repo_id, revision):
        if not self.may_write():
            return
        repo, commit = self.find_commit(kind, repo_id, revision)
        if commit is None:
            return
        tag = json.loads(body)["tag"]
        if tag in repo.tags:
            return self.reply(409, {"error": f"Tag reference exists already: {tag}"})
        repo.tags[tag] = commit.oid
        self.reply(200, b"OK")

    # ------------------------------------------------------------------ read
    def info_of(self, repo: Repo, commit: Commit) -> dict:
        card = None
        if "README.md" in commit.files:
            card = read_front_matter(self.hub.content(commit.files["README.md"]).decode("utf-8", "replace"))
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

    def repo_info(self, body, query, kind, repo_id, revision="main"):
        repo, commit = self.find_commit(kind, repo_id, revision)
        if commit is not None:
            self.reply(200, self.info_of(repo, commit))

    def tree(self, body, query, kind, repo_id, revision, folder=None):
        _, commit = self.find_commit(kind, repo_id, revision)
        if commit is None:
            return
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
                out.append(self.hub.describe(path, commit.files[path]))
        if prefix and not out:
            return self.refuse(404, "EntryNotFound", f"{folder} does not exist on {revision!r}")
        self.reply(200, out)

    def paths_info(self, body, query, kind, repo_id, revision):
        _, commit = self.find_commit(kind, repo_id, revision)
        if commit is None:
            return
        try:
            paths = json.loads(body)["paths"]
        except ValueError:  # sent as a form
            paths = parse_qs(body.decode()).get("paths", [])
        paths = [paths] if isinstance(paths, str) else paths
        self.reply(200, [self.hub.describe(p, commit.files[p]) for p in paths if p in commit.files])

    def download(self, body, query, repo_id, revision, path, kind=None):
        repo, commit = self.find_commit(kind, repo_id, revision)
        if commit is None:
            return
        stored = commit.files.get(path)
        if stored is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.oid})
        data = self.hub.content(stored)
        headers = {
            "X-Repo-Commit": commit.oid,
            "Accept-Ranges": "bytes",
            "ETag": f'"{stored.sha256 or git_blob_sha1(data)}"',
        }
        if stored.sha256:
            headers.update({"X-Linked-Etag": f'"{stored.sha256}"', "X-Linked-Size": str(stored.size)})
        if path == "config.json":
            repo.downloads += 1
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span:
            first, end = int(span[1]), min(int(span[2]) + 1, len(data)) if span[2] else len(data)
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
            return self.reply(206, data[first:end], headers)
        self.reply(200, data, headers)


_KIND = r"(?P<kind>models|datasets|spaces|kernels)"
_PREFIX = r"(?:/(?P<kind>datasets|spaces|kernels))?"
_REPO = r"(?P<repo_id>[^/]+/[^/]+)"
_REV = r"(?P<revision>[^/]+|refs/pr/\d+)"
_H = _Handler
ROUTES = [
    ("GET", r"/api/whoami-v2", _H.whoami),
    ("GET", r"/api/organizations/(?P<name>[^/]+)/overview", _H.organization),
    ("POST", r"/api/repos/create", _H.create_repo),
    ("DELETE", r"/api/repos/delete", _H.delete_repo),
    ("POST", r"/api/validate-yaml", _H.validate_yaml),
    ("GET", rf"/api/{_KIND}", _H.list_repos),
    ("POST", rf"/api/{_KIND}/{_REPO}/preupload/{_REV}", _H.preupload),
    ("POST", rf"/api/{_KIND}/{_REPO}/commit/{_REV}", _H.create_commit),
    ("POST", rf"/api/{_KIND}/{_REPO}/branch/{_REV}", _H.create_branch),
    ("POST", rf"/api/{_KIND}/{_REPO}/tag/{_REV}", _H.create_tag),
    ("POST", rf"/api/{_KIND}/{_REPO}/paths-info/{_REV}", _H.paths_info),
    ("GET", rf"/api/{_KIND}/{_REPO}/tree/{_REV}(?:/(?P<folder>.*))?", _H.tree),
    ("GET", rf"/api/{_KIND}/{_REPO}/refs", _H.list_refs),
    ("GET", rf"/api/{_KIND}/{_REPO}/revision/{_REV}", _H.repo_info),
    ("GET", rf"/api/{_KIND}/{_REPO}", _H.repo_info),
    ("POST", rf"{_PREFIX}/{_REPO}\.git/info/lfs/objects/batch", _H.lfs_batch),
    ("PUT", r"/_lfs/(?P<oid>[0-9a-f]{64})", _H.lfs_put),
    ("POST", r"/_lfs-verify", _H.lfs_verify),
    ("GET|HEAD", rf"{_PREFIX}/{_REPO}/resolve/{_REV}/(?P<path>.+)", _H.download),
]
