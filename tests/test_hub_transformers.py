"""`hess=` on transformers classes: the traps of that loader. The map of traps is in test_hub.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from sidecars import BASE, SAVED, files_of, images, outputs, publish, same, scores_of, sparse
from test_hub import VGGT_CONFIG
from transformers import AutoModel

import hess_plugin
from hess_plugin import Pi3Config, VggtConfig, VggtModel, apply_hess, register
from hess_plugin.errors import InputError

PHOTOS = images(3, 42)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return VggtModel(VGGT_CONFIG).eval()


class TestLoading:
    def test_auto_model(self, hub, model, tmp_path):
        publish(hub, BASE, model, tmp_path, "co3d")
        scores = scores_of(model)
        loaded = AutoModel.from_pretrained(BASE, hess=scores)
        assert type(loaded) is VggtModel
        assert loaded.hess.scores is scores
        assert AutoModel.from_pretrained(BASE, hess="co3d").hess.scores.info.dataset == "co3d"
        assert hess_plugin.from_pretrained(AutoModel, BASE, hess="co3d").hess.scores.info.dataset == "co3d"

    def test_config_given(self, hub, model, tmp_path):
        publish(hub, BASE, model, tmp_path, "co3d")
        config = VggtConfig.from_pretrained(BASE)
        for cls in (VggtModel, AutoModel):
            assert cls.from_pretrained(BASE, config=config, hess=sparse("co3d")).hess is not None

    def test_config_has_no_such_field(self, model, tmp_path):
        """With a field of that name AutoConfig would take the argument, and refuse objects."""
        assert not {"hess"} & (set(VggtConfig().to_dict()) | set(Pi3Config().to_dict()))
        apply_hess(model, scores_of(model), sparse())
        model.save_pretrained(tmp_path)
        assert not hasattr(VggtConfig.from_pretrained(tmp_path), "hess")

    def test_output_loading_info(self, hub, model, tmp_path):
        publish(hub, BASE, model, tmp_path, "co3d")
        loaded, info = VggtModel.from_pretrained(BASE, hess="co3d", output_loading_info=True)
        assert loaded.hess.scores.info.dataset == "co3d"
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]

    def test_dtype(self, hub, model, tmp_path):
        publish(hub, BASE, model, tmp_path, "co3d")
        loaded = VggtModel.from_pretrained(BASE, hess="co3d", dtype=torch.bfloat16)
        assert loaded.dtype is torch.bfloat16
        assert loaded.hess is not None

    def test_reads_a_repository_of_the_mixin(self, model, tmp_path):
        """The published config.json names the class arguments and no `model_type`."""
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        del config["model_type"], config["architectures"], config["transformers_version"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        loaded = VggtModel.from_pretrained(tmp_path, hess=sparse(scores_of(model)))
        loaded.hess.remove()
        assert same(outputs(loaded, PHOTOS), outputs(model, PHOTOS))

    def test_model_types_of_others_are_kept(self):
        """A later transformers may have a type of our name: the import must not raise or replace it."""
        code = """
from transformers import AutoConfig, BertConfig
class VggtConfig(BertConfig):
    model_type = "vggt"
AutoConfig.register("vggt", VggtConfig)
from hess_plugin import VggtModel
assert type(AutoConfig.for_model("vggt")) is VggtConfig
"""
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


class TestSaving:
    """transformers uploads inside `save_pretrained`, and refuses folders in folders."""

    @pytest.fixture
    def sparse_model(self, model):
        apply_hess(model, scores_of(model), sparse())
        return model

    def test_dense_push_is_untouched(self, hub, model, tmp_path):
        model.save_pretrained(tmp_path, push_to_hub=True, repo_id="tester/dense", variant="fp32")
        assert "model.fp32.safetensors" in hub.files("tester/dense")
        assert not SAVED & set(hub.files("tester/dense"))

    @pytest.mark.parametrize("through", ["push", "save"])
    def test_pull_request(self, hub, sparse_model, tmp_path, through):
        hub.put("org/model", {"README.md": b"mine"})
        if through == "push":
            sparse_model.push_to_hub("org/model", create_pr=True)
        else:
            sparse_model.save_pretrained(tmp_path, push_to_hub=True, repo_id="org/model", create_pr=True)
        assert {"model.safetensors", *SAVED} <= set(hub.files("org/model", revision="refs/pr/1"))
        assert not {"model.safetensors", *SAVED} & set(hub.files("org/model"))
        assert set(hub.repos["model", "org/model"].branches) == {"main", "refs/pr/1"}

    def test_branch(self, hub, sparse_model):
        sparse_model.push_to_hub("org/model", revision="next")
        assert {"model.safetensors", *SAVED} <= set(hub.files("org/model", revision="next"))
        assert not SAVED & set(hub.files("org/model"))

    def test_uniform_has_nothing_to_upload(self, hub, model):
        apply_hess(model, None, hess_plugin.HeSSConfig(allocation="uniform"))
        model.push_to_hub("tester/uniform")
        assert not SAVED & set(hub.files("tester/uniform"))

    @pytest.mark.parametrize("lost", [{"state_dict": {}}, {"variant": "fp16"}])
    def test_arguments_that_the_upload_would_lose(self, hub, sparse_model, tmp_path, lost):
        with pytest.raises(InputError, match=f"does not take {next(iter(lost))}; save without push_to_hub"):
            sparse_model.save_pretrained(tmp_path / "new", push_to_hub=True, **lost)
        assert not (tmp_path / "new").exists()
        assert hub.calls() == []

    def test_only_the_main_process_writes(self, hub, sparse_model, tmp_path):
        sparse_model.save_pretrained(tmp_path, is_main_process=False, push_to_hub=True)
        assert files_of(tmp_path) == {}
        assert hub.calls() == []

    def test_failed_push_leaves_no_trace(self, hub, sparse_model, tmp_path):
        hub.fail_next(r"POST .*/commit/", 500)
        with pytest.raises(OSError, match="500"):
            sparse_model.push_to_hub("tester/failed")
        sparse_model.save_pretrained(tmp_path)
        assert set(files_of(tmp_path)) >= SAVED

    def test_registered_child(self, hub, sparse_model):
        child = register(type("Child", (VggtModel,), {}))
        torch.manual_seed(0)
        model = child(VGGT_CONFIG)
        apply_hess(model, scores_of(model), sparse())
        model.push_to_hub("tester/child")
        assert set(hub.files("tester/child")) >= SAVED
        assert sum("/commit/main" in call for call in hub.calls()) == 2  # weights, then scores, once each
