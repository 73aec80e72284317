"""What the hub holds, who may use it and what it was asked, without HTTP."""

from __future__ import annotations

import hashlib
import re
import threading
import time

from .repositories import Commit, Repo, StoredFile, git_blob_sha1

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npz", ".ply")
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class Hub:
    url: str  # where it is served

    def __init__(self, token: str, user: str, orgs: tuple[str, ...], lfs_threshold: int):
        self.token, self.user, self.orgs, self.lfs_threshold = token, user, orgs, lfs_threshold
        self.trusted_publishers: set[str] = set()  # owners whose kernels need no trust_remote_code
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[dict] = []  # method, path, body, headers
        self._faults: list[list] = []  # [pattern, status, times left]
        self.lock = threading.RLock()

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

    def take_fault(self, call: str) -> int | None:
        """Status of the first fault that matches this "METHOD /path", used up by one time."""
        for fault in self._faults:
            if re.search(fault[0], call):
                fault[2] -= 1
                if fault[2] <= 0:
                    self._faults.remove(fault)
                return fault[1]
        return None

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
