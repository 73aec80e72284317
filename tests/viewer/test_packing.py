"""What the page gets is what was predicted, to the stated rounding."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from viewing import bent, small_scene

from hess_plugin.evaluation.compare import Reference
from hess_plugin.geometry.cameras import camera_centers
from hess_plugin.geometry.clouds import distances
from hess_plugin.geometry.neighbors import nearest_neighbors
from hess_plugin.viewer.clouds import write_scene
from hess_plugin.viewer.packing import STEPS, pack_scene
from hess_plugin.viewer.results import SceneResult, place, shown_pixels


@pytest.fixture(scope="module")
def result() -> SceneResult:
    scene = small_scene()
    return SceneResult.of(scene, Reference.from_scene(scene), {"dense": bent(scene, "dense")})


def unpacked(column: dict, name: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(column[name]), dtype)


def test_distances_are_the_nearest() -> None:
    points = torch.rand(50, 3)
    reference = torch.rand(70, 3)
    torch.testing.assert_close(distances(points, reference), nearest_neighbors(points, reference)[0].sqrt())


def test_points_and_errors(result: SceneResult) -> None:
    packed = pack_scene(result, max_points=500)
    json.dumps(packed, allow_nan=False)
    truth, dense = packed["columns"]
    assert [truth["isReference"], dense["isReference"]] == [True, False]
    placed = place(result, "dense")
    positions = unpacked(dense, "positions", "<u2").reshape(-1, 3)
    points = torch.tensor(positions / STEPS * dense["extent"] + dense["low"])
    assert len(points) == dense["drawn"] == 500 < dense["total"] == len(placed.cloud.points)
    rounding = max(dense["extent"]) / STEPS
    assert distances(points, placed.cloud.points).max() < rounding
    known = result.reference.points[result.reference.mask]
    errors = torch.tensor(unpacked(dense, "errors", "<u2") / STEPS * packed["unit"])
    expected = distances(points, known)
    assert (errors - expected).abs().max() < 2 * rounding + packed["unit"] / STEPS
    assert errors.max() > 0
    assert not unpacked(truth, "errors", "<u2").any()
    normals = torch.tensor(unpacked(dense, "normals", "i1") / 127).view(-1, 3)
    assert len(normals) == 500
    assert (normals.norm(dim=-1) - 1).abs().max() < 0.01  # to the rounding
    nearest = nearest_neighbors(points.float(), placed.cloud.points)[1]
    assert ((normals - placed.cloud.normals[nearest]).abs().amax(1) < 0.01).float().mean() > 0.9


def test_what_the_truth_does_not_know_is_not_judged(result: SceneResult) -> None:
    mask = result.reference.mask.clone()
    mask[2:] = False
    partial = replace(result, reference=replace(result.reference, mask=mask))
    truth, dense = pack_scene(partial, max_points=10**6)["columns"]
    assert truth["total"] == int(mask.sum())
    assert 0 < dense["judged"] < dense["drawn"]
    assert (unpacked(dense, "errors", "<u2") > 0).sum() <= dense["judged"]


def test_points_far_away_are_counted_and_others_not_coarser(result: SceneResult) -> None:
    prediction = result.predictions["dense"]
    points = prediction.points.clone()
    mask = result.reference.mask.clone()
    shown = shown_pixels(prediction).nonzero()
    for pixel, value in ((shown[0], 1e6), (shown[-1], torch.nan)):
        points[tuple(pixel)] = value
        mask[tuple(pixel)] = False  # nor may they decide the alignment
    reference = replace(result.reference, mask=mask)
    spoilt = SceneResult.of(result.scene, reference, {"dense": replace(prediction, points=points)})
    clean, column = (pack_scene(each, 10**6)["columns"][1] for each in (result, spoilt))
    assert column["far"] == 1
    assert max(column["extent"]) < 1.1 * max(clean["extent"])


def test_points_that_other_photos_contradict_are_not_shown(result: SceneResult) -> None:
    prediction = result.predictions["dense"]
    points, shown = prediction.points.clone(), shown_pixels(prediction)
    center = camera_centers(prediction.extrinsics)[1]
    points[1] = center + 0.5 * (points[1] - center)  # floats before what the others see
    kept = shown_pixels(replace(prediction, points=points))
    others = [0, 2, 3, 4]
    assert torch.equal(kept[others], shown[others])
    assert kept[1].sum() < 0.5 * shown[1].sum()


def test_a_cloud_of_which_nothing_may_be_shown(result: SceneResult, tmp_path: Path) -> None:
    prediction = result.predictions["dense"]
    nothing = replace(prediction, depth=torch.zeros_like(prediction.depth))
    empty = SceneResult.of(result.scene, result.reference, {"dense": nothing})
    write_scene(tmp_path / "scene", empty)
    assert set(trimesh.load(tmp_path / "scene/scene_dense.glb").geometry) == {"cameras"}
    assert pack_scene(empty, 10**6)["columns"][1]["drawn"] == 0


def test_files_of_a_scene(result: SceneResult, tmp_path: Path) -> None:
    for _ in range(2):  # again: replaced
        write_scene(tmp_path / "a" / "scene", result)
    names = {path.name for path in (tmp_path / "a" / "scene").iterdir()}
    kinds = ("points_{}.ply", "cameras_{}.ply", "scene_{}.glb", "cameras_{}.json")
    assert names == {kind.format(method) for kind in kinds for method in ("dense", "ground_truth")}
    placed = place(result, "dense")
    scene = trimesh.load(tmp_path / "a/scene/scene_dense.glb")
    upright = placed.cloud.points * torch.tensor([1.0, -1.0, -1.0])  # glTF: y up
    np.testing.assert_allclose(scene.geometry["points"].vertices, upright, atol=1e-5)
    colors = scene.geometry["points"].colors[:, :3] / 255
    np.testing.assert_allclose(colors, placed.cloud.colors, atol=1 / 255)
    assert len(scene.geometry["cameras"].faces) == 5 * 6
