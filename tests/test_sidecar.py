"""Resolution of every form of `hess=`, on folders and over HTTP; no weights are involved."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
from doubles import TinyVGGT
from sidecars import BASE, SIDECAR, found, put_sidecars, refusal, scores_of

import hess_plugin.sidecar
from hess_plugin import HeadScores, HeSSConfig
from hess_plugin.sidecar import resolve


@pytest.fixture(scope="module")
def scores() -> HeadScores:
    return scores_of(TinyVGGT(), "made")


@pytest.fixture
def put(hub, tmp_path):
    """put(repo, *aliases, root=...): a repository with sidecars only; the alias is the dataset's name."""
    return functools.partial(put_sidecars, hub, tmp_path)


class TestObjects:
    @pytest.mark.parametrize("hess", [None, False])
    def test_dense(self, hess):
        assert resolve(hess, BASE) is None

    def test_head_scores(self, scores):
        assert resolve(scores, BASE) == (scores, HeSSConfig(scores=scores), None)
        config = HeSSConfig(scores=scores, sparse_ratio=0.25)
        assert resolve(config, None) == (scores, config, None)

    @pytest.mark.parametrize("given", [True, None, False])
    def test_uniform_asks_for_no_scores(self, hub, given):
        config = HeSSConfig(scores=given, allocation="uniform")
        assert resolve(config, BASE) == (None, config, None)
        assert hub.calls() == []

    def test_uniform_with_named_scores_reads_them(self, put):
        put(BASE, "co3d")
        assert found(HeSSConfig(scores="co3d", allocation="uniform")) == "co3d"

    @pytest.mark.parametrize("given", [1, 0.5, {"co3d": 1}, ["co3d"], HeSSConfig(scores=None)])
    def test_other_types(self, given):
        with pytest.raises(TypeError, match=r"hess= does not take .* it takes True"):
            resolve(given, BASE)

    @pytest.mark.parametrize(
        "given", ["", "co 3d", "a/b/c", "org/repo@", "org/repo:", "co3d:x", "-x", "co3d/"]
    )
    def test_malformed(self, hub, given):
        assert "is not a form that is understood" in refusal(given)
        assert hub.calls() == []


class TestFolders:
    @pytest.mark.parametrize("form", [Path, str, lambda folder: f"{folder}{os.sep}"])
    def test_absolute(self, scores, tmp_path, form):
        scores.save(tmp_path / "mine")
        assert found(form(tmp_path / "mine")) == "made"

    def test_relative_and_home(self, scores, tmp_path, monkeypatch):
        scores.save(tmp_path / "mine")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert [found(form) for form in ("./mine", "~/mine", Path("mine"), Path("~/mine"))] == ["made"] * 4

    def test_base_folder(self, tmp_path):
        for alias in ("co3d", "dtu"):
            scores_of(TinyVGGT(), alias).save(tmp_path / "hess" / alias)
        assert found("co3d", tmp_path) == found("co3d", str(tmp_path)) == "co3d"
        assert "several under hess/, name one: co3d, dtu" in refusal(True, tmp_path)
        scores_of(TinyVGGT(), "root").save(tmp_path)
        assert found(True, tmp_path) == "root"
        assert "no hess/eth; available: co3d, dtu, the one at its root (hess=True)" in refusal(
            "eth", tmp_path
        )

    def test_only_alias(self, scores, tmp_path):
        scores.save(tmp_path / "hess" / "made")
        assert found(True, tmp_path) == found(tmp_path) == "made"

    def test_half_a_sidecar(self, scores, tmp_path):
        scores.save(tmp_path / "hess" / "made")
        (tmp_path / "hess" / "made" / SIDECAR[1]).unlink()
        assert f"hess/made holds only one of {SIDECAR[0]} and {SIDECAR[1]}" in refusal("made", tmp_path)
        (tmp_path / SIDECAR[0]).write_text("{}")
        assert "its root holds only one of" in refusal(True, tmp_path)

    def test_missing(self, tmp_path):
        assert f"(1) the folder {tmp_path}/absent: no such folder." in refusal(tmp_path / "absent")
        assert "(1) the folder ./absent: no such folder." in refusal(True, "./absent")
        assert "no sidecar; available: none" in refusal(tmp_path)

    def test_a_folder_does_not_beat_an_alias(self, put, scores, tmp_path, monkeypatch):
        put(BASE, "co3d")
        scores.save(tmp_path / "co3d")
        monkeypatch.chdir(tmp_path)
        assert found("co3d") == "co3d"


class TestRepositories:
    def test_beside_the_weights(self, put):
        put(BASE, "co3d", root="root")
        assert found(True) == "root"
        assert found("co3d") == "co3d"

    def test_only_alias_and_several(self, put):
        put(BASE, "co3d")
        assert found(True) == "co3d"
        put(BASE, "dtu")
        assert (
            "facebook/VGGT-1B@main: none at its root and several under hess/, name one: co3d, dtu"
            in refusal(True)
        )

    def test_named_repository(self, put, hub):
        put("me/scores", "dtu", root="old")
        hub.repos["model", "me/scores"].tags["v1"] = hub.repos["model", "me/scores"].branches["main"]
        put("me/scores", root="new")
        assert found("me/scores") == "new"
        assert found("me/scores@v1") == "old"
        assert found("me/scores:dtu") == found("me/scores@v1:dtu") == "dtu"
        assert not any(BASE in call for call in hub.calls())

    def test_revision_of_the_base(self, put, hub):
        hub.repos.clear()
        put(BASE, "co3d")
        put("me/scores", root="mine")
        with_branch = hub.repos["model", BASE]
        with_branch.branches["other"] = with_branch.branches["main"]
        put(BASE, "dtu", revision="other")
        assert found("dtu", revision="other") == "dtu"
        assert found("me/scores", revision="other") == "mine"
        assert "facebook/VGGT-1B@main: no hess/dtu; available: co3d" in refusal("dtu")

    def test_both_files_of_one_commit(self, put, hub):
        commit = put(BASE, "co3d")
        assert found("co3d") == "co3d"
        assert {f"GET /{BASE}/resolve/{commit}/hess/co3d/{name}" for name in SIDECAR} <= set(hub.calls())

    def test_index(self, put, monkeypatch):
        monkeypatch.setattr(
            hess_plugin.sidecar, "KNOWN_SIDECARS", {"co3d": {BASE: "org/known:x"}, "dtu": {BASE: "o/d"}}
        )
        put(BASE, "eth")
        put("org/known", "x")
        assert found("co3d") == "x"
        put(BASE, "co3d")
        assert found("co3d") == "co3d"  # the base's own comes first
        message = refusal("dtu")
        assert (
            "(1) facebook/VGGT-1B@main: no hess/dtu; available: co3d, eth; (2) o/d@main: no such repo"
            in message
        )
        assert "(3) the packaged index: an entry 'dtu' for this model; it knows: co3d, dtu." in message

    def test_no_sidecar_is_published_yet(self):
        assert hess_plugin.sidecar.KNOWN_SIDECARS == {}

    def test_error_says_what_to_do(self, put):
        put(BASE, "co3d")
        message = refusal("dtu")
        assert "(2) the packaged index: no entry 'dtu' for this model; it knows: none." in message
        assert (
            f"`python -m hess_plugin.calibrate --model {BASE} --dataset folder --root SCENES --out scores/`"
            in message
        )
        assert "no place, since the model comes from neither" in refusal(True, None)

    def test_no_model_is_named_where_none_was_given(self, tmp_path):
        message = refusal(tmp_path / "gone", None)
        assert message.startswith(f"no HeSS scores for hess='{tmp_path}/gone'. Looked at (1) the folder")

    def test_missing_repository_and_revision(self, put):
        assert "no/such@main: no such repository, or it is private" in refusal("no/such")
        put(BASE, "co3d")
        assert "facebook/VGGT-1B@v9: the revision 'v9' does not exist" in refusal(f"{BASE}@v9:co3d")
        assert "the revision 'v9' does not exist" in refusal("co3d", revision="v9")

    def test_private(self, put, hub):
        put("me/secret", root="mine")
        hub.repos["model", "me/secret"].private = True
        assert "private and the token does not open it" in refusal("me/secret", token=False)
        assert found("me/secret", token="hf_test") == found("me/secret") == "mine"
