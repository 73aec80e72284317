"""What all routes share: reading a request, finding its route, answering, rights and look-ups."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from .hub import Hub
from .repositories import Commit, Repo

Query = dict[str, list[str]]
KIND = r"(?P<kind>models|datasets|spaces|kernels)"
PREFIX = r"(?:/(?P<kind>datasets|spaces|kernels))?"
REPO = r"(?P<repo_id>[^/]+/[^/]+)"
REV = r"(?P<revision>[^/]+|refs/pr/\d+)"


class Refused(Exception):
    """The request was answered with an error; its route has nothing left to do."""


class Handler(BaseHTTPRequestHandler):
    """One request. A route is called with it, its body, its query and the named groups of the pattern."""

    protocol_version = "HTTP/1.1"
    hub: Hub
    routes: list[tuple[str, str, Callable[..., None]]]  # methods joined by "|", pattern of the path, function

    def log_message(self, *args) -> None:
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

    def reply(self, status: int, payload=b"", headers: dict | None = None) -> None:
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

    def refuse(self, status: int, code: str, message: str = "", headers: dict | None = None) -> None:
        """An error the client can name: X-Error-Code selects the exception class."""
        message = message or code
        self.reply(
            status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        )

    def dispatch(self) -> None:
        body = self.read_body()
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        hub = self.hub
        with hub.lock:
            hub.requests.append(
                {"method": self.command, "path": self.path, "body": body, "headers": dict(self.headers)}
            )
            status = hub.take_fault(f"{self.command} {self.path}")
            if status is not None:
                return self.reply(status, {"error": "injected fault"})
            for methods, pattern, function in self.routes:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in methods.split("|"):
                    parts = {k: unquote(v) if v else v for k, v in match.groupdict().items()}
                    try:
                        return function(self, body, query, **parts)
                    except Refused:
                        return None
                    except Exception:  # a bug here must be visible in the client's error text
                        return self.reply(500, {"error": traceback.format_exc()})
        self.refuse(404, "NotFound", f"no route for {self.command} {url.path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = dispatch

    def has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def check_token(self) -> None:
        """Refuse a request that may not write, by raising `Refused` like the look-ups below."""
        if not self.has_token():
            self.reply(401, {"error": "Invalid username or password."})
            raise Refused

    def find_repo(self, kind: str | None, repo_id: str) -> Repo:
        repo = self.hub.repos.get(((kind or "models").rstrip("s"), repo_id))
        if repo is not None and (self.has_token() or not repo.private):
            return repo
        self.refuse(404 if repo is None else 401, "RepoNotFound", "Repository not found")
        raise Refused

    def find_commit(self, kind: str | None, repo_id: str, revision: str) -> tuple[Repo, Commit]:
        repo = self.find_repo(kind, repo_id)
        commit = repo.resolve(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            raise Refused
        return repo, commit

    def repo_url(self, kind: str, repo_id: str) -> str:
        return f"{self.hub.url}/{'' if kind == 'models' else kind + '/'}{repo_id}"
