"""Pushing scores to the local hub: what arrives, what a second push does, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from doubles import TinyVGGT
from hub_server import HubServer
from pushing import MODEL, REPO, head, refused
from sidecars import SIDECAR, files_of, found, refusal, scores_of

from hess_plugin import HeadScores
from hess_plugin.card import CARD_FILE, PICTURE_FILE
from hess_plugin.cli import main
from hess_plugin.gates import GATES_FILE, HeadGates
from hess_plugin.publish import push_to_hub

PUSHED = {*SIDECAR, CARD_FILE, PICTURE_FILE}


@pytest.fixture(scope="module")
def scores() -> HeadScores:
    return scores_of(TinyVGGT(), "co3d")


@pytest.fixture
def other() -> HeadScores:
    return scores_of(TinyVGGT(), "dtu")


@pytest.fixture
def base(hub: HubServer) -> HubServer:
    """The hub with a model whose author wrote a README."""
    hub.put(MODEL, {"config.json": b"{}", "README.md": b"mine"})
    return hub


class TestRepositoryOfScores:
    def test_round_trip(self, hub, scores, tmp_path):
        scores.save(tmp_path)
        pushed = scores.push_to_hub(REPO)
        assert pushed == (f"{hub.url}/{REPO}/commit/{head(hub)}", head(hub), True)
        assert set(hub.files(REPO)) == PUSHED | {".gitattributes"}
        assert {name: hub.read(REPO, name) for name in SIDECAR} == files_of(tmp_path)
        assert found(REPO) == "co3d"

    @pytest.mark.parametrize("alias", [[], ["--alias", "co3d"]])
    def test_gates_go_and_come_beside_the_scores(self, base, scores, tmp_path, alias):
        name = f"{MODEL}:co3d" if alias else REPO
        scores.save(tmp_path / "ours")
        shape = scores.scene_traces["camera"].shape
        gates = HeadGates({error: torch.randn(shape).double() for error in ("camera", "points")}, scores.info)
        gates.save(tmp_path / "ours")
        assert main(["push", str(tmp_path / "ours"), name.partition(":")[0], *alias]) == 0
        for _ in range(2):  # the second time it is there already
            assert main(["pull", name, "--out", str(tmp_path / "theirs")]) == 0
        assert files_of(tmp_path / "theirs") == files_of(tmp_path / "ours")
        assert GATES_FILE in files_of(tmp_path / "theirs")

    def test_damaged_gates_are_not_pulled(self, hub, scores, tmp_path, capsys):
        push_to_hub(scores, REPO)
        hub.put(REPO, {GATES_FILE: b"half"})
        assert main(["pull", REPO, "--out", str(tmp_path / "out")]) == 2
        assert GATES_FILE in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("file", ["config.json", "model.safetensors", "model.pt"])
    def test_card_of_a_model_stays(self, hub, scores, file):
        before = hub.put(MODEL, {file: b"{}", "README.md": b"mine"})
        message = refused(scores, MODEL)
        assert f"{MODEL} is the repository of a model (it holds {file})" in message
        assert "alias= (--alias)" in message
        assert head(hub, MODEL) == before

    def test_repository_of_scores_may_hold_more(self, hub, scores, other):
        hub.put(REPO, {"README.md": b"made on the website", "LICENSE": b"..."})
        push_to_hub(other, REPO, alias="dtu")
        push_to_hub(scores, REPO)
        assert [found(REPO), found(f"{REPO}:dtu")] == ["co3d", "dtu"]

    def test_one_commit_with_a_message(self, hub, scores):
        push_to_hub(scores, REPO, commit_message="First scores")
        commits = hub.repos["model", REPO].commits
        assert [commit.title for commit in commits.values()] == ["initial commit", "First scores"]

    def test_large_files_go_through_lfs(self, hub, scores):
        push_to_hub(scores, REPO)
        files = hub.repos["model", REPO].resolve("main").files
        assert {name for name in PUSHED if files[name].sha256} == {SIDECAR[1]}

    def test_second_push_changes_nothing(self, hub, scores):
        first = push_to_hub(scores, REPO)
        again = push_to_hub(HeadScores(dict(scores.scene_traces), scores.info), REPO)
        assert again == (first.url, first.commit, False)
        assert len(hub.repos["model", REPO].commits) == 2

    def test_new_scores_replace_old_ones(self, hub, scores, other):
        old = push_to_hub(scores, REPO).commit
        assert push_to_hub(other, REPO).changed
        assert found(REPO) == "dtu"
        assert found(f"{REPO}@{old}") == "co3d"

    @pytest.mark.parametrize("private", [True, False, None])
    def test_private(self, hub, scores, private):
        push_to_hub(scores, REPO, private=private)
        assert hub.repos["model", REPO].private == bool(private)
        if private:
            assert "private and the token does not open it" in refusal(REPO, token=False)
        assert found(REPO, token=None if private else False) == "co3d"

    def test_private_means_private(self, hub, scores):
        """A push meant to be private must not end in a public repository that happens to be there."""
        hub.put(REPO, {"README.md": b"public"})
        before = head(hub)
        assert f"{REPO} is there already and public, private=True does not" in refused(scores, private=True)
        assert head(hub) == before
        hub.repos["model", REPO].private = True
        assert "is there already and private" in refused(scores, private=False)
        assert push_to_hub(scores, REPO, private=True).changed


class TestModelRepository:
    def test_alias(self, base, scores, other):
        assert push_to_hub(scores, MODEL, alias="co3d").changed
        assert push_to_hub(other, MODEL, alias="dtu-v2").changed
        expected = {f"hess/{alias}/{name}" for alias in ("co3d", "dtu-v2") for name in PUSHED}
        assert expected == {path for path in base.files(MODEL) if path.startswith("hess/")}
        assert base.read(MODEL, "README.md") == b"mine"
        assert [found("co3d", MODEL), found(f"{MODEL}:dtu-v2")] == ["co3d", "dtu"]
        assert not push_to_hub(scores, MODEL, alias="co3d").changed

    def test_model_must_be_there(self, hub, scores):
        assert "the Hub answers 404: there is no such repository" in refused(scores, MODEL, alias="co3d")
        assert not hub.repos

    @pytest.mark.parametrize("alias", ["", "a/b", "../x", "-a", "a b", "."])
    def test_impossible_alias(self, base, scores, alias):
        assert "alias must be letters" in refused(scores, MODEL, alias=alias)
        assert base.calls() == []

    def test_pull_request(self, base, scores):
        before = head(base, MODEL)
        pushed = push_to_hub(scores, MODEL, alias="co3d", create_pr=True)
        assert pushed == (f"{base.url}/{MODEL}/discussions/1", head(base, MODEL, "refs/pr/1"), True)
        assert head(base, MODEL) == before
        assert found("co3d", MODEL, revision="refs/pr/1") == "co3d"
        assert not push_to_hub(scores, MODEL, alias="co3d", revision="refs/pr/1").changed


class TestRevisions:
    def test_branch_is_made(self, hub, scores, other):
        push_to_hub(scores, REPO)
        main = head(hub)
        assert push_to_hub(other, REPO, revision="next").commit == head(hub, branch="next")
        assert head(hub) == main
        assert [found(REPO), found(f"{REPO}@next")] == ["co3d", "dtu"]
        assert not push_to_hub(other, REPO, revision="next").changed

    def test_tag(self, base, scores, other):
        push_to_hub(scores, MODEL, alias="x")
        huggingface_hub.HfApi().create_tag(MODEL, tag="v1.0")
        push_to_hub(other, MODEL, alias="x")
        assert [found(f"{MODEL}@v1.0:x"), found(f"{MODEL}:x")] == ["co3d", "dtu"]

    def test_tags_and_commits_stay(self, hub, scores, other):
        commit = push_to_hub(scores, REPO).commit
        huggingface_hub.HfApi().create_tag(REPO, tag="v1.0")
        for fixed in ("v1.0", commit):
            assert "only a branch can be pushed to" in refused(other, revision=fixed)


class TestEvaluation:
    def test_measurements_reach_the_card(self, hub, scores, tmp_path):
        record = {
            "dataset": "dtu", "method": "hess", "metric": "auc_30", "value": 0.75, "density": 0.25,
            "num_scenes": 3, "num_views": 8, "command": "measure --now",
        }  # fmt: skip
        (tmp_path / "measured.json").write_text(json.dumps([record]))
        push_to_hub(scores, REPO, evaluation=tmp_path / "measured.json")
        card = huggingface_hub.ModelCard.load(REPO)
        assert [result.metric_value for result in card.data.eval_results] == [0.75]
        assert "measure --now" in card.text

    def test_unreadable(self, hub, scores, tmp_path):
        assert "measured.json: " in refused(scores, evaluation=tmp_path / "measured.json")
        assert hub.calls() == []


class TestBadInput:
    @pytest.mark.parametrize("repo_id", ["scores", "", "a/b/c", "./scores", "a/b@v1", "a/b:x"])
    def test_impossible_name(self, hub, scores, repo_id):
        assert f"{repo_id!r} is no repository; scores are pushed to 'user/name'" in refused(scores, repo_id)
        assert hub.calls() == []

    def test_a_layer_without_sensitivity(self, hub, scores):
        traces = {error: trace.clone() for error, trace in scores.scene_traces.items()}
        traces["camera"][:, 1] = 0
        assert "of global layer 1 is zero for every head" in refused(HeadScores(traces, scores.info))
        assert hub.calls() == []


def test_missing_packages_are_named(
    hub: HubServer, scores: HeadScores, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(ImportError, match=r'model cards need jinja2; pip install "hess-plugin\[hub\]"'):
        push_to_hub(scores, REPO)
    assert hub.calls() == []
