import pytest
import torch

from hess_plugin.datasets import synthetic_scene
from hess_plugin.geometry.cameras import camera_centers, unproject_depth
from hess_plugin.plots import stability
from hess_plugin.plots.consistency import MAX_OTHERS


def _wall(cameras: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth [V, 5, 7] 2 everywhere, extrinsics and intrinsics of cameras that stand at the same place."""
    intrinsics = torch.tensor([[7.0, 0, 3], [0, 7, 2], [0, 0, 1]]).expand(cameras, 3, 3)
    return torch.full((cameras, 5, 7), 2.0), torch.eye(3, 4).expand(cameras, 3, 4), intrinsics


@pytest.mark.parametrize(
    ("point", "vote"),
    [
        ((0.0, 0.0, 2.0), 2),
        ((0.0, 0.0, 2.09), 2),
        ((0.0, 0.0, 3.0), 0),  # hidden
        ((0.0, 0.0, 1.0), -2),  # would hide the wall
        ((0.99, 0.7, 2.0), 2),  # in the last pixel
        ((1.01, 0.0, 2.0), 0),  # outside
        ((0.0, 0.0, -2.0), 0),
        ((0.0, 0.0, 0.0), 0),
        ((torch.nan, 0.0, 2.0), 0),
    ],
)
def test_the_votes_of_two_photos_of_a_wall(point: tuple[float, float, float], vote: int) -> None:
    depth, extrinsics, intrinsics = _wall(3)
    points = unproject_depth(depth, extrinsics, intrinsics)
    points[0, 1, 4] = torch.tensor(point)
    votes = stability(points, depth, extrinsics, intrinsics)
    assert votes[0, 1, 4] == vote
    votes[0, 1, 4] = 2
    assert (votes == 2).all()


def test_who_is_not_to_judge_does_not() -> None:
    depth, extrinsics, intrinsics = _wall(3)
    points = unproject_depth(depth, extrinsics, intrinsics)
    depth[1] = torch.nan
    assert stability(points, depth, extrinsics, intrinsics)[:, 2, 3].tolist() == [1, 2, 1]


@pytest.mark.parametrize("cameras", [1, 2, MAX_OTHERS + 4])
def test_a_point_has_as_many_judges_as_there_are_others_up_to_a_limit(cameras: int) -> None:
    depth, extrinsics, intrinsics = _wall(cameras)
    votes = stability(unproject_depth(depth, extrinsics, intrinsics), depth, extrinsics, intrinsics)
    assert (votes == min(cameras - 1, MAX_OTHERS)).all()


def test_true_points_stay_and_what_floats_before_them_goes() -> None:
    scene = synthetic_scene(5, 8, image_size=(41, 62))
    known = scene.depth > 0
    cameras = scene.extrinsics, scene.intrinsics
    points = unproject_depth(scene.depth, *cameras)
    judging = scene.depth.where(known, torch.nan)
    votes = stability(points, judging, *cameras)
    assert (votes[known] >= 0).float().mean() > 0.98
    assert (votes[known] > 0).float().mean() > 0.8
    floating = points.clone()
    centers = camera_centers(scene.extrinsics)[0]
    floating[0] = centers + 0.7 * (points[0] - centers)
    others = stability(floating, judging, *cameras)
    assert torch.equal(others[1:], votes[1:])  # judged by depth maps, which are as they were
    assert (others[0][known[0]] >= 0).float().mean() < 0.5
