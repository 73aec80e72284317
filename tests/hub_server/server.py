"""The hub behind HTTP on a port of this machine."""

from __future__ import annotations

import threading
from http.server import ThreadingHTTPServer

from . import file_routes, repository_routes, revision_routes, upload_routes
from .handler import Handler
from .hub import Hub

ROUTES = [
    *repository_routes.ROUTES,
    *upload_routes.ROUTES,
    *revision_routes.ROUTES,
    *file_routes.ROUTES,
]


class HubServer(Hub):
    def __init__(
        self,
        *,
        port: int = 0,
        token: str = "hf_test",
        user: str = "tester",
        orgs: tuple[str, ...] = ("tester-org",),
        lfs_threshold: int = 10 * 1024 * 1024,
    ):
        super().__init__(token, user, orgs, lfs_threshold)
        self._port = port

    def start(self) -> HubServer:
        handler = type("Handler", (Handler,), {"hub": self, "routes": ROUTES})
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
