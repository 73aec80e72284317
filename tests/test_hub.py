"""`from_pretrained(..., hess=...)` of every kind of class: what both loaders share.

Traps of the two loaders -> where each has its test (this file where none is named):

A class with fixed arguments, unregistered    test_hub_mixin: test_unregistered_fixed_arguments
`**kwargs` swallows `hess=` when unregistered test_hub_mixin: test_unregistered_kwargs_swallow_it
`**kwargs` and config.json                    test_hub_mixin: test_registered_kwargs_do_not_see_it
Wrapper without functools.wraps               test_hub_mixin: test_subclass_still_gets_its_config
strict=False hides renamed keys               test_attaching_changes_no_key; test_hub_mixin: test_strict
Private touch points of the mixin             test_hub_mixin: test_touch_points
`revision=` belongs to the base               test_revision; test_sidecar: test_revision_of_the_base
Path or id by prefix, never by isdir          test_sidecar: test_a_folder_does_not_beat_an_alias
A sidecar that overwrites config.json         test_round_trip
Family by structure, not by module path       test_alias (doubles in a module of another name)
Bare nn.Module without a loader               test_hub_registration: test_refuses_others
Scores must not enter the module tree         test_attaching_changes_no_key
Classes imported later                        test_auto
Weights read before a bad alias is noticed    test_scores_come_before_the_weights
"Offline" told as "no such alias"             test_sidecar_offline: test_offline
A cache hides server errors                   fixture `hub`; test_sidecar_offline: TestServerErrors
Objects through AutoModel, beside `config=`   test_hub_transformers: test_auto_model, test_config_given
A config field would refuse objects           test_hub_transformers: test_config_has_no_such_field
output_loading_info returns a tuple           test_hub_transformers: test_output_loading_info
Upload happens inside save_pretrained         test_push_inside_save; test_hub_transformers: TestSaving
adapter_config.json goes to PEFT              test_round_trip, test_push
A model type that transformers has, too       test_hub_transformers: test_model_types_of_others_are_kept
Repository without model_type                 test_hub_transformers: test_reads_a_repository_of_the_mixin
Non-persistent buffers come back unset        test_round_trip (reload equals), test_attaching_changes_no_key
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from doubles import TinyPi3, TinyVGGT
from sidecars import (
    BASE,
    SAVED,
    SIDECAR,
    files_of,
    images,
    outputs,
    publish,
    same,
    scores_of,
    sidecar_files,
    sparse,
)
from torch import Tensor, nn

import hess_plugin
from hess_plugin import VggtConfig, VggtModel, apply_hess, register, unregister
from hess_plugin.errors import InputError
from hess_plugin.hub import is_registered

VGGT_CONFIG = VggtConfig(
    img_size=28, embed_dim=32, depth=2, num_heads=4, patch_embed="conv", camera_trunk_depth=1,
    camera_num_heads=4, dpt_features=8, dpt_out_channels=(4, 4, 8, 8), dpt_layers=(0, 0, 1, 1),
    enable_track=False, layer_scale_init=1.0,
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A class with a loader, how to make a tiny model of it, and photos for that model."""

    build: Callable[[], nn.Module]
    photos: Tensor

    @property
    def cls(self) -> type:
        return type(self.build())


KINDS = {
    "mixin-vggt": Kind(TinyVGGT, images()),
    "mixin-pi3": Kind(TinyPi3, images()),
    "transformers-vggt": Kind(lambda: VggtModel(VGGT_CONFIG), images(3, 42)),
}


@pytest.fixture(params=KINDS)
def kind(request):
    """One kind of class, registered; a class of ours stays registered."""
    kind = KINDS[request.param]
    known = is_registered(kind.cls)
    register(kind.cls)
    yield kind
    if not known:
        unregister(kind.cls)


@pytest.fixture
def model(kind):
    torch.manual_seed(0)
    return kind.build().eval()


class TestLoading:
    def test_alias(self, hub, kind, model, tmp_path):
        publish(hub, BASE, model, tmp_path, "co3d", "dtu")
        dense = outputs(model, kind.photos)
        loaded = kind.cls.from_pretrained(BASE, hess=sparse("dtu"))
        assert loaded.hess.scores.info.dataset == "dtu"
        assert not same(outputs(loaded, kind.photos), dense)
        with apply_hess(model, scores_of(model, "dtu"), sparse()):
            assert same(outputs(loaded, kind.photos), outputs(model, kind.photos))
        loaded.hess.remove()
        assert same(outputs(loaded, kind.photos), dense)

    def test_objects_arrive_as_they_are(self, hub, kind, model, tmp_path):
        publish(hub, BASE, model, tmp_path)
        scores, config = scores_of(model), sparse()
        loaded = kind.cls.from_pretrained(BASE, hess=scores)
        assert loaded.hess.scores is scores
        config = sparse(scores)
        loaded = kind.cls.from_pretrained(BASE, hess=config)
        assert loaded.hess.scores is scores
        assert loaded.hess.config is config

    @pytest.mark.parametrize("given", [{}, {"hess": None}, {"hess": False}])
    def test_dense(self, hub, kind, model, tmp_path, given):
        publish(hub, BASE, model, tmp_path, "co3d", root="root")
        loaded = kind.cls.from_pretrained(BASE, **given)
        assert getattr(loaded, "hess", None) is None
        assert same(outputs(loaded, kind.photos), outputs(model, kind.photos))
        assert not any("hess" in call for call in hub.calls())

    def test_folder(self, kind, model, tmp_path):
        model.save_pretrained(tmp_path)
        scores_of(model, "co3d").save(tmp_path / "hess" / "co3d")
        for folder in (tmp_path, str(tmp_path)):
            assert kind.cls.from_pretrained(folder, hess="co3d").hess.scores.info.dataset == "co3d"
            assert kind.cls.from_pretrained(folder, hess=True).hess.scores.info.dataset == "co3d"

    def test_scores_come_before_the_weights(self, hub, kind, model, tmp_path):
        publish(hub, BASE, model, tmp_path, "co3d")
        with pytest.raises(InputError, match="no hess/dtu; available: co3d"):
            kind.cls.from_pretrained(BASE, hess="dtu")
        assert not any("model.safetensors" in call for call in hub.calls())
        kind.cls.from_pretrained(BASE, hess="co3d")
        files = [name for call in hub.calls() for name in (SIDECAR[1], "model.safetensors") if name in call]
        assert files.index("model.safetensors") == files.count(SIDECAR[1]) > 0

    def test_arguments_reach_the_sidecar(self, hub, kind, model, tmp_path):
        publish(hub, BASE, model, tmp_path, "co3d")
        cache = {"cache_dir": tmp_path / "cache"}
        kind.cls.from_pretrained(BASE, hess="co3d", **cache)
        assert kind.cls.from_pretrained(BASE, hess="co3d", local_files_only=True, **cache).hess is not None
        with pytest.raises((InputError, OSError), match=r"not in the cache|find the requested files"):
            kind.cls.from_pretrained(BASE, hess="co3d", local_files_only=True)
        hub.repos["model", BASE].private = True
        with pytest.raises((InputError, OSError), match=r"private|Repository Not Found|not a valid model"):
            kind.cls.from_pretrained(BASE, hess="co3d", token=False)

    def test_revision(self, hub, kind, model, tmp_path):
        publish(hub, BASE, model, tmp_path, "co3d")
        repo = hub.repos["model", BASE]
        repo.branches["next"] = repo.branches["main"]
        hub.put(BASE, sidecar_files(scores_of(model, "dtu"), tmp_path, "hess/dtu/"), revision="next")
        assert kind.cls.from_pretrained(BASE, hess="dtu", revision="next").hess.scores.info.dataset == "dtu"
        with pytest.raises(InputError, match="no hess/dtu"):
            kind.cls.from_pretrained(BASE, hess="dtu")

    def test_scores_of_another_model(self, hub, kind, model, tmp_path):
        publish(hub, BASE, model, tmp_path)
        other = scores_of(TinyVGGT(depth=3, num_heads=2))
        with pytest.raises(ValueError, match="scores are for vggt with 3 layers x 2 heads of 16"):
            kind.cls.from_pretrained(BASE, hess=other)

    def test_subclass(self, hub, kind, model, tmp_path):
        publish(hub, BASE, model, tmp_path, "co3d")
        child = type("Child", (kind.cls,), {})
        loaded = child.from_pretrained(BASE, hess="co3d")
        assert type(loaded) is child
        assert loaded.hess.scores.info.dataset == "co3d"
        assert not is_registered(child)

    def test_function_for_any_class(self, hub, kind, model, tmp_path):
        publish(hub, BASE, model, tmp_path, "co3d")
        loaded = hess_plugin.from_pretrained(kind.cls, BASE, hess=sparse("co3d"))
        assert same(
            outputs(loaded, kind.photos),
            outputs(kind.cls.from_pretrained(BASE, hess=sparse("co3d")), kind.photos),
        )

    def test_attaching_changes_no_key(self, hub, kind, model, tmp_path):
        publish(hub, BASE, model, tmp_path, "co3d")
        loaded = kind.cls.from_pretrained(BASE, hess="co3d")
        assert list(loaded.state_dict()) == list(model.state_dict())
        for listed in (nn.Module.named_parameters, nn.Module.named_buffers):
            pairs = zip(listed(loaded), listed(model), strict=True)
            assert all(ours == theirs and torch.equal(a, b) for (ours, a), (theirs, b) in pairs)
        assert not any(name == "hess" or name.startswith("hess.") for name, _ in loaded.named_modules())


class TestSaving:
    def test_round_trip(self, kind, model, tmp_path):
        apply_hess(model, scores_of(model), sparse())
        model.save_pretrained(tmp_path)
        saved = files_of(tmp_path)
        assert set(saved) > SAVED
        assert "adapter_config.json" not in saved
        assert "hess" not in json.loads(saved["config.json"])
        again = kind.cls.from_pretrained(tmp_path, hess=sparse(True))
        assert same(outputs(again, kind.photos), outputs(model, kind.photos))
        model.hess.remove()
        plain = kind.cls.from_pretrained(tmp_path)
        assert same(outputs(plain, kind.photos), outputs(model, kind.photos))

    def test_removed_scores_are_not_saved(self, kind, model, tmp_path):
        apply_hess(model, scores_of(model), sparse()).remove()
        model.save_pretrained(tmp_path)
        assert not SAVED & set(files_of(tmp_path))

    def test_push(self, hub, kind, model):
        apply_hess(model, scores_of(model), sparse())
        model.push_to_hub("tester/pushed")
        assert {"config.json", "model.safetensors", *SAVED} <= set(hub.files("tester/pushed"))
        assert "adapter_config.json" not in hub.files("tester/pushed")
        again = kind.cls.from_pretrained("tester/pushed", hess=sparse(True))
        assert same(outputs(again, kind.photos), outputs(model, kind.photos))

    def test_push_inside_save(self, hub, kind, model, tmp_path):
        apply_hess(model, scores_of(model), sparse())
        model.save_pretrained(tmp_path / "mine", push_to_hub=True, repo_id="tester/named", private=True)
        model.save_pretrained(tmp_path / "mine", push_to_hub=True)
        for repo_id in ("tester/named", "tester/mine"):
            assert {"config.json", "model.safetensors", *SAVED} <= set(hub.files(repo_id))
        assert hub.repos["model", "tester/named"].private
        assert set(files_of(tmp_path / "mine")) >= SAVED
