"""Resolution of `hess=` without a network, with a cache, and from a server that fails."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from sidecars import BASE, found, put_sidecars, refusal

import hess_plugin.sidecar


@pytest.fixture
def put(hub, tmp_path):
    """put(repo, *aliases, root=...): a repository with sidecars only; the alias is the dataset's name."""
    return functools.partial(put_sidecars, hub, tmp_path)


class TestCache:
    def test_offline(self, put, hub):
        put(BASE, "co3d", root="root")
        message = refusal(
            "co3d", local_files_only=True
        )  # cold: "offline" must not be told as "no such alias"
        assert "not in the cache, and the Hub was not reached" in message
        assert "no hess/co3d" not in message
        found("co3d")
        before = len(hub.calls())
        assert found("co3d", local_files_only=True) == "co3d"
        assert "not in the cache" in refusal(True, local_files_only=True)  # known to exist, never fetched
        assert "no hess/dtu; available: co3d, the one at its root" in refusal("dtu", local_files_only=True)
        assert len(hub.calls()) == before

    def test_offline_resolves_as_online(self, put):
        put(BASE, "co3d")
        assert found(True) == found(True, local_files_only=True) == "co3d"
        put(BASE, "dtu")
        found("dtu")  # now two aliases, one of them in the cache of this commit
        assert "not in the cache" in refusal(True, local_files_only=True)

    def test_index_is_not_asked_when_the_base_is_unknown(self, put, monkeypatch):
        monkeypatch.setattr(hess_plugin.sidecar, "KNOWN_SIDECARS", {"co3d": {BASE: "org/known"}})
        put("org/known", root="indexed")
        put(BASE, "dtu")
        assert found("co3d") == "indexed"
        shutil.rmtree(Path(huggingface_hub.constants.HF_HUB_CACHE) / "models--facebook--VGGT-1B")
        assert "org/known" not in refusal("co3d", local_files_only=True)  # the base could hold another `co3d`

    def test_cache_dir_and_force_download(self, put, hub, tmp_path):
        put(BASE, "co3d")
        assert found("co3d", cache_dir=tmp_path / "cache") == "co3d"
        assert found("co3d", cache_dir=tmp_path / "cache", local_files_only=True) == "co3d"
        assert "not in the cache" in refusal("co3d", local_files_only=True)

        def downloads() -> int:
            return sum(call.startswith("GET") and "hess_scores" in call for call in hub.calls())

        before = downloads()
        found("co3d", cache_dir=tmp_path / "cache")
        assert downloads() == before
        found("co3d", cache_dir=tmp_path / "cache", force_download=True)
        assert downloads() == before + 1


class TestServerErrors:
    def test_one_503_is_retried(self, put, hub):
        put(BASE, "co3d")
        hub.fail_next(r"HEAD .*hess_config", 503)
        assert found("co3d") == "co3d"

    @pytest.mark.parametrize("status", [500, 503])
    def test_failing_download_is_not_a_missing_alias(self, put, hub, status):
        put(BASE, "co3d")
        hub.fail_next(r"GET .*hess_scores", status, times=20)
        message = refusal("co3d")
        assert f"{BASE}@main: the Hub answered {status}; " in message
        assert message.endswith("They may be there: try again later.")

    def test_server_down(self, put, hub):
        put(BASE, "co3d")
        hub.fail_next(r"(HEAD|GET) /(api/models/)?facebook/VGGT-1B", 500, times=20)
        message = refusal("co3d")
        assert "the Hub was not reached" in message
        assert "no hess/co3d" not in message
        assert "Calibrate" not in message
