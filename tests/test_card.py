"""The card: what it says comes from the scores, its metadata survive YAML, its code runs."""

from __future__ import annotations

import dataclasses
import re
from importlib.resources import files
from typing import Any

import pytest
import yaml
from doubles import TinyVGGT
from hub_server import HubServer
from huggingface_hub import ModelCard
from jinja2 import Environment, Template, UndefinedError, meta
from sidecars import scores_of
from tiny_checkpoint import save_tiny_checkpoint

import hess_plugin.card
from hess_plugin import HeadScores, HeSSConfig
from hess_plugin.card import CARD_FILE, PICTURE_FILE, base_repository, card_files
from hess_plugin.evaluation.measurements import Measurement
from hess_plugin.publish import push_to_hub

REPO = "tester/scores"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_scores(**changes: Any) -> HeadScores:
    scores = scores_of(TinyVGGT(), "co3d")
    about = {
        "base_model": "facebook/VGGT-1B",
        "base_revision": COMMIT,
        "weights_sha256": "f" * 64,  # of a model whose weights are random
        "calibration": {"inlier_radius": 0.2236, "neighbors": "faiss"},
        "dataset_settings": {"subset": "fewview_dev", "categories": ["apple", "book"]},
    }
    return HeadScores(scores.scene_traces, dataclasses.replace(scores.info, **(about | changes)))


def measurement(**changes: Any) -> Measurement:
    values = {
        "dataset": "dtu", "method": "hess", "metric": "auc_30", "value": 0.861, "density": 0.49,
        "num_scenes": 24, "num_views": 16, "command": "compare --scenes 24",
    }  # fmt: skip
    return Measurement(**(values | changes))


def card(scores: HeadScores | None = None, *args: Any, **changes: Any) -> str:
    scores = make_scores(**changes) if scores is None else scores
    return card_files(scores, REPO, *args)[CARD_FILE].decode()


def metadata(text: str) -> dict[str, Any]:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.S)[1])


class TestMetadata:
    def test_all_of_it(self):
        assert metadata(card()) == {
            "base_model": "facebook/VGGT-1B",
            "base_model_relation": "adapter",
            "library_name": "hess-plugin",
            "pipeline_tag": "image-to-3d",
            "tags": ["hess", "sparse-attention", "vggt"],
            "datasets": ["co3d"],
        }

    def test_round_trip(self):
        text = card(make_scores(), None, [measurement()])
        read = ModelCard(text, ignore_metadata_errors=False)
        assert read.data.to_dict() == metadata(text)
        assert ModelCard(str(read)).data.to_dict() == read.data.to_dict()

    @pytest.mark.parametrize(
        ("base_model", "base_revision"),
        [("models/vggt", None), (None, None), ("/home/me/.cache/snapshots/x", COMMIT), ("tiny_vggt", COMMIT)],
    )
    def test_a_folder_is_no_hub_id(self, base_model, base_revision):
        text = card(base_model=base_model, base_revision=base_revision)
        assert not {"base_model", "base_model_relation"} & set(metadata(text))
        assert "so no base model is named" in text
        assert "# Head sensitivity scores (HeSS) of a vggt model, calibrated on co3d" in text
        assert base_model is None or base_model not in text
        assert "its terms apply to them as well" in text

    @pytest.mark.parametrize("dataset", ["folder", "synthetic"])
    def test_own_scenes_are_no_data_set(self, dataset):
        assert "datasets" not in metadata(card(dataset=dataset))

    def test_dataset_that_yaml_could_misread(self):
        assert metadata(card(dataset="no: yes"))["datasets"] == ["no: yes"]

    def test_base_repository(self):
        assert base_repository(make_scores().info) == "facebook/VGGT-1B"
        assert base_repository(make_scores(base_model="a/b/c").info) is None


class TestModelIndex:
    MEASURED = (
        measurement(),
        measurement(metric="ate", value=0.0125),
        measurement(method="uniform", value=0.785),
        measurement(density=0.245, value=0.815),
    )

    def test_results_of_the_scores(self):
        results = ModelCard(card(make_scores(), None, self.MEASURED)).data.eval_results
        assert [(each.metric_type, each.metric_name, each.metric_value) for each in results] == [
            ("auc_30", "auc_30 at density 0.490", 0.861),
            ("ate", "ate at density 0.490", 0.0125),
            ("auc_30", "auc_30 at density 0.245", 0.815),
        ]
        assert {(each.task_type, each.dataset_type, each.dataset_name) for each in results} == {
            ("image-to-3d", "dtu", "dtu")
        }
        assert results[0].metric_args == {"num_scenes": 24, "num_views": 16}

    def test_table_has_what_they_are_compared_with(self):
        text = card(make_scores(), None, self.MEASURED)
        table = text.partition("## Evaluation")[2].split("\n## ")[0]
        rows = [line for line in table.splitlines() if line.startswith("| dtu")]
        assert rows == [
            "| dtu | 24 | 16 | hess | 0.490 | 0.8610 | 0.0125 |",
            "| dtu | 24 | 16 | uniform | 0.490 | 0.7850 | not measured |",
            "| dtu | 24 | 16 | hess | 0.245 | 0.8150 | not measured |",
        ]
        assert table.count("compare --scenes 24") == 1

    def test_without_measurements(self):
        text = card()
        assert "model-index" not in text
        assert "Evaluation" not in text

    def test_baselines_alone_are_no_result_of_the_scores(self):
        text = card(make_scores(), None, [measurement(method="dense")])
        assert "model-index" not in metadata(text)
        assert "## Evaluation" in text


class TestText:
    def test_settings_are_those_of_the_scores(self):
        text = card()
        for row in (
            "| num views | 2 |", "| seed | 0 |", "| camera weight | 0.5 |", "| projections | query |",
            "| inlier radius | 0.2236 |", "| neighbors | faiss |",
            r"| subset | fewview\_dev |", "| categories | apple, book |",
        ):  # fmt: skip
            assert row in text
        assert COMMIT in text
        assert make_scores().info.weights_sha256 in text
        assert f"torch {make_scores().info.versions['torch']}" in text

    def test_no_field_is_forgotten(self):
        """A new field of the sidecar appears in the table unless the card tells it elsewhere."""
        fields = {field.name for field in dataclasses.fields(make_scores().info)}
        settings = dict(hess_plugin.card._settings(make_scores().info))
        shown = {"num_views", "seed", "camera_weight", "projections", "calibration", "dataset_settings"}
        assert fields - hess_plugin.card._TOLD_ELSEWHERE == shown
        assert len(settings) == 4 + 2 + 2

    def test_sensitive_heads(self):
        scores = make_scores()
        shares = scores.weights(1.0)[0]
        top = int(shares.argmax())
        assert f"| 1 | {top + 1} ({shares[top]:.2f}), " in card(scores)
        assert "spread evenly it would be\n0.25" in card(scores)

    def test_skipped_scenes(self):
        assert "2 scenes x 2 views of co3d, none skipped" in card()
        text = card(skipped={"apple/3": "12 frames, 20 needed"})
        assert "12 frames, 20 needed (apple/3)" in text

    def test_no_fingerprint(self):
        assert "No fingerprint of its weights was recorded" in card(weights_sha256=None)

    def test_cells_stay_in_their_table(self):
        text = card(calibration={"note|": "a | b\n## `c` <b> [d]"})
        assert r"| note\| | a \| b ## \`c\` \<b\> \[d\] |" in text

    def test_licence_names_the_base(self):
        licence = card().partition("## Licence")[2]
        assert "[facebook/VGGT-1B](https://huggingface.co/facebook/VGGT-1B)" in licence


class TestTemplate:
    def test_every_variable_is_needed(self, monkeypatch):
        """What the template names and what it is given are the same, in the branches not taken, too."""
        source = (files("hess_plugin.hub_cards") / "sidecar_card.md.jinja").read_text()
        known = meta.find_undeclared_variables(Environment().parse(source))
        given: dict[str, Any] = {}
        original = Template.render
        monkeypatch.setattr(Template, "render", lambda self, **kw: given.update(kw) or original(self, **kw))
        card()
        assert known == set(given)

    def test_undefined_is_an_error(self, tmp_path, monkeypatch):
        (tmp_path / "sidecar_card.md.jinja").write_text("{{ nobody }}")
        monkeypatch.setattr(hess_plugin.card, "files", lambda package: tmp_path)
        with pytest.raises(UndefinedError, match="'nobody' is undefined"):
            card()


class TestPicture:
    def test_png(self):
        picture = card_files(make_scores(), REPO)[PICTURE_FILE]
        assert picture.startswith(b"\x89PNG")
        assert f"]({PICTURE_FILE})" in card()

    def test_same_scores_same_bytes(self):
        first, second = (card_files(make_scores(), REPO, None, [measurement()]) for _ in range(2))
        assert first == second
        assert card_files(scores_of(TinyVGGT(), "dtu"), REPO)[PICTURE_FILE] != first[PICTURE_FILE]


class TestSnippet:
    """The code on the card is run against the hub that the card lies on."""

    @pytest.fixture
    def checkpoint(self, hub: HubServer, tmp_path):
        folder = save_tiny_checkpoint(tmp_path / "model")
        scores = HeadScores.load(folder / "hess" / "synthetic")
        names = [path.name for path in folder.iterdir() if path.is_file()]
        hub.put("facebook/tiny", {name: (folder / name).read_bytes() for name in names})
        info = dataclasses.replace(
            scores.info, base_model="facebook/tiny", base_revision=COMMIT, weights_sha256=None
        )
        return HeadScores(scores.scene_traces, info)

    @pytest.mark.parametrize(("repo_id", "alias"), [(REPO, None), ("facebook/tiny", "mine")])
    def test_it_runs(self, hub, checkpoint, repo_id, alias):
        push_to_hub(checkpoint, repo_id, alias=alias)
        text = hub.read(repo_id, f"hess/{alias}/{CARD_FILE}" if alias else CARD_FILE).decode()
        names: dict[str, Any] = {}
        exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names)
        assert names["model"].hess.scores.info == checkpoint.info
        assert names["model"].hess.config == HeSSConfig(scores=alias or repo_id)

    def test_other_families(self):
        text = card(backbone="map_anything")
        assert (
            'model = hess_plugin.from_pretrained(ModelClass, "facebook/VGGT-1B", hess="tester/scores")'
            in text
        )

    def test_local_base(self):
        text = card(base_revision=None)
        assert 'VggtModel.from_pretrained("path/to/the/model", hess="tester/scores")' in text
