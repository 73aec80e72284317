"""Repositories, their commits and files, as the server holds them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


def git_blob_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class StoredFile:
    size: int
    data: bytes | None = None  # regular file
    sha256: str | None = None  # LFS file; the bytes are in Hub.lfs_objects


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
