"""What presets measure, and what methods change."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from toy_scores import make_scores

from hess_plugin.config import HeSSConfig
from hess_plugin.errors import InputError
from hess_plugin.sweep.methods import BASELINE, METHODS, Level, density_level
from hess_plugin.sweep.presets import PAPER_PAIRS, PRESETS, chosen_settings, preset_named


def test_the_pairs_of_the_paper() -> None:
    assert len(set(PAPER_PAIRS)) == 16
    named = {s.level.name for s in PRESETS["paper"].settings() if s.level and s.method.name == "hess"}
    assert {f"{ratio:g}/{threshold:g}" for ratio, threshold in PAPER_PAIRS} < named
    assert {name for name in named if name.startswith("density")} >= {"density 0.25", "density 0.5"}


@pytest.mark.parametrize("name", PRESETS)
def test_the_baseline_comes_first_in_each_level(name: str) -> None:
    settings = PRESETS[name].settings()
    keys = [setting.key for setting in settings]
    assert keys[0] == "dense"
    assert len(set(keys)) == len(keys)
    seen = set()
    for setting in settings[1:]:
        assert setting.level is not None
        if setting.level.name not in seen:
            assert setting.method.name == BASELINE
        seen.add(setting.level.name)


def test_the_paper_preset_has_every_method() -> None:
    assert {setting.method.name for setting in PRESETS["paper"].settings()} == set(METHODS)


def test_chosen_methods() -> None:
    chosen = list(chosen_settings(PRESETS["small"], ["reverse"]))
    assert {setting.method.name for setting in chosen} == {"dense", BASELINE, "reverse"}
    with pytest.raises(InputError, match="unknown method 'magic'; known: dense, uniform,"):
        list(chosen_settings(PRESETS["small"], ["magic"]))
    with pytest.raises(InputError, match="unknown preset 'large'; known: paper, timing, density, small"):
        preset_named("large")


def test_each_method_changes_only_what_it_says() -> None:
    scores, base = make_scores(), HeSSConfig(q_block_size=32, kv_block_size=16)
    level = Level(0.8, 0.4)
    hess = asdict(level.config(METHODS["hess"], scores, 7, base))
    assert (hess["allocation"], hess["camera_weight"]) == ("hess", scores.info.camera_weight)
    assert (hess["q_block_size"], hess["kv_block_size"]) == (32, 16)
    for name, method in METHODS.items():
        config = asdict(level.config(method, scores, 7, base))
        differing = {key for key in config if config[key] != hess[key]}
        expected = {key for key, value in method.changes.items() if hess[key] != value}
        if method.changes.get("allocation") == "uniform":
            expected.add("camera_weight")
        if name == "shuffled":
            expected.add("shuffle_seed")
        assert differing == expected, name


def test_densities() -> None:
    assert density_level(0.25) == Level(0.75)
    assert density_level(0.1).name == "density 0.1"
    for density in (0, 1.5, float("nan")):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            density_level(density)


def test_calibration_sizes_are_nested() -> None:
    ids = tuple(f"scene {k}" for k in range(12))
    scores = make_scores(scene_ids=ids, view_ids=(("1", "2", "3", "4"),) * 12)
    sets = [set(METHODS[f"scenes-{n}"].scores(scores, None).info.scene_ids) for n in (1, 5, 10)]
    assert [len(each) for each in sets] == [1, 5, 10]
    assert sets[0] < sets[1] < sets[2]
    assert not METHODS["scenes-20"].is_possible(scores, None, None)
    assert not METHODS["swapped"].is_possible(scores, None, None)
    assert METHODS["swapped"].is_possible(scores, scores, None)
    assert not METHODS["key"].is_possible(scores, None, None)
