"""Pulling scores into a folder, and what is refused when scores arrive over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
from doubles import TinyVGGT
from hub_server import HubServer
from safetensors import safe_open
from sidecars import BASE, SIDECAR, files_of, found, publish, put_sidecars, scores_of, sidecar_files

from hess_plugin import HeadScores, register, unregister
from hess_plugin.errors import InputError
from hess_plugin.sidecar import pull, resolve

REPO = "me/scores"
CONFIG, TENSORS = SIDECAR


def refused(name: str, out: Path, **access: object) -> str:
    """The one line with which a pull is refused; the folder is not made."""
    before = files_of(out)
    with pytest.raises(InputError) as caught:
        pull(name, out, **access)
    assert files_of(out) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def repo(hub: HubServer, tmp_path: Path) -> HubServer:
    """A repository with scores at its root and under an alias, tagged v1, and others at its root since."""
    put_sidecars(hub, tmp_path / "old", REPO, "dtu", root="old")
    huggingface_hub.HfApi().create_tag(REPO, tag="v1")
    put_sidecars(hub, tmp_path / "new", REPO, root="new")
    return hub


class TestPull:
    @pytest.mark.parametrize(
        ("name", "dataset"), [(REPO, "new"), (f"{REPO}@v1", "old"), (f"{REPO}@v1:dtu", "dtu")]
    )
    def test_bytes_are_those_of_the_hub(self, repo, tmp_path, name, dataset):
        out = tmp_path / "a" / "scores"
        assert pull(name, out).info.dataset == dataset
        revision = "v1" if "@v1" in name else "main"
        prefix = "hess/dtu/" if dataset == "dtu" else ""
        expected = {file: repo.read(REPO, prefix + file, revision=revision) for file in SIDECAR}
        assert files_of(out) == expected
        assert HeadScores.load(out).info.dataset == dataset

    def test_again_is_fine(self, repo, tmp_path):
        pull(REPO, tmp_path / "scores")
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()}
        pull(REPO, tmp_path / "scores")
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir()} == before

    def test_other_files_stay(self, repo, tmp_path):
        pull(f"{REPO}@v1", tmp_path / "scores")
        assert f"holds '{CONFIG}' already; choose another --out" in refused(REPO, tmp_path / "scores")
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "results.json").write_text('{"files": []}')  # what staging would replace
        assert "holds 'results.json' already" in refused(REPO, tmp_path / "demo")
        (tmp_path / "file").write_text("mine")
        assert "is a file" in refused(REPO, tmp_path / "file")

    def test_empty_folder_and_home(self, repo, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "scores").mkdir()
        pull(REPO, "~/scores")
        assert set(files_of(tmp_path / "scores")) == set(SIDECAR)

    def test_failed_write_leaves_nothing(self, repo, tmp_path, monkeypatch):
        def fail(self: Path, *args: object) -> None:
            raise OSError("disk full")

        pull(REPO, tmp_path / "first")  # now in the cache
        monkeypatch.setattr(Path, "write_bytes", fail)
        assert "scores: disk full" in refused(REPO, tmp_path / "scores")
        assert not [path for path in tmp_path.iterdir() if "scores" in path.name]

    @pytest.mark.parametrize("name", ["co3d", "./scores", "a/b/c", "", "a/b@", "a/b:"])
    def test_no_repository(self, hub, tmp_path, name):
        assert "scores are pulled from org/repo[@revision][:alias]" in refused(name, tmp_path / "out")
        assert hub.calls() == []

    def test_says_what_is_there(self, repo, tmp_path):
        out = tmp_path / "out"
        message = refused(f"{REPO}:eth", out)
        assert message.startswith(
            f"cannot pull {REPO}:eth: {REPO}@main: no hess/eth; available: dtu, the one "
        )
        assert "the revision 'v9' does not exist" in refused(f"{REPO}@v9", out)
        assert "no such repository" in refused("no/such", out)
        repo.repos["model", REPO].private = True
        assert "private and the token does not open it" in refused(REPO, out, token=False)

    @pytest.mark.parametrize("status", [500, 503])
    def test_server_fails(self, repo, tmp_path, status):
        repo.fail_next(r"GET .*hess_scores", status, times=20)
        assert f"{REPO}@main: the Hub answered {status}." in refused(REPO, tmp_path / "out")

    def test_name_that_only_the_library_refuses(self, hub, tmp_path):
        assert "no such repository" in refused("a--b/c", tmp_path / "out")


class TestOffline:
    """HF_HUB_OFFLINE is read when huggingface_hub is imported, so in a process of its own."""

    CODE = "import sys; from hess_plugin.sidecar import pull; pull(sys.argv[1], sys.argv[2])"

    def offline(self, name: str, out: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", self.CODE, name, str(out)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def test_warm_and_cold(self, repo, tmp_path):
        message = self.offline(REPO, tmp_path / "cold").stderr
        assert f"cannot pull {REPO}: {REPO}@main: not in the cache, and the Hub was not reached" in message
        assert not (tmp_path / "cold").exists()
        pull(REPO, tmp_path / "online")
        calls = len(repo.calls())
        assert self.offline(REPO, tmp_path / "warm").returncode == 0
        assert files_of(tmp_path / "warm") == files_of(tmp_path / "online")
        assert len(repo.calls()) == calls


def newer(files: dict[str, bytes]) -> None:
    files[CONFIG] = json.dumps(json.loads(files[CONFIG]) | {"format_version": 2, "more": 1}).encode()


def truncated(files: dict[str, bytes]) -> None:
    files[TENSORS] = files[TENSORS][:-8]


def tampered(files: dict[str, bytes]) -> None:
    """All traces doubled, and their means, so that only the digest tells."""
    path = Path(os.environ["HF_HOME"]) / "tampered.safetensors"
    path.write_bytes(files[TENSORS])
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = {name: 2 * tensor for name, tensor in safetensors.torch.load_file(path).items()}
    files[TENSORS] = safetensors.torch.save(tensors, metadata)


def other_config(files: dict[str, bytes]) -> None:
    files[CONFIG] = json.dumps(json.loads(files[CONFIG]) | {"dataset": "elsewhere"}).encode()


def no_tensors(files: dict[str, bytes]) -> None:
    del files[TENSORS]


def no_config(files: dict[str, bytes]) -> None:
    del files[CONFIG]


DAMAGES: dict[Callable[[dict[str, bytes]], None], str] = {
    newer: f"{CONFIG}: format_version is 2, this version reads up to 1; upgrade hess-plugin.",
    truncated: f"{TENSORS}: .*incomplete",
    tampered: f"{TENSORS}: .*traces",
    other_config: f"{TENSORS}: was written with another {CONFIG}",
    no_tensors: "its root holds only one of",
    no_config: "its root holds only one of",
}


class TestRefusedOverHTTP:
    @pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
    def test_damaged(self, hub, tmp_path, damage):
        files = sidecar_files(scores_of(TinyVGGT(), "toy"), tmp_path)
        hub.put(REPO, files)
        assert found(REPO) == "toy"
        damage(files)
        hub.repos.clear()
        hub.put(REPO, files)
        for read in (lambda: resolve(REPO, None), lambda: pull(REPO, tmp_path / "out")):
            with pytest.raises(InputError, match=DAMAGES[damage]) as caught:
                read()
            assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_scores_of_another_model(self, hub, tmp_path):
        publish(hub, BASE, TinyVGGT(), tmp_path)
        hub.put(REPO, sidecar_files(scores_of(TinyVGGT(depth=3, num_heads=2), "other"), tmp_path))
        register(TinyVGGT)
        try:
            with pytest.raises(ValueError, match="scores are for vggt with 3 layers x 2 heads") as caught:
                TinyVGGT.from_pretrained(BASE, hess=REPO)
        finally:
            unregister(TinyVGGT)
        assert "this model is vggt with 2 layers x 4 heads" in str(caught.value)
        assert "\n" not in str(caught.value)
