"""CO3D's cameras as OpenCV's, by hand; reading annotation files is tested with whole trees."""

from __future__ import annotations

import numpy as np

from hess_plugin.datasets.co3d_annotations import opencv_camera, pose_problem


def test_hand_worked_camera() -> None:
    """480 x 640, R = 1: the world's origin lands on (293.10, 233.74), in both formats of intrinsics."""
    for focal, principal, name in (
        ([3.0, 3.1], [0.05, -0.1], "ndc_isotropic"),
        ([2.25, 3.1], [0.0375, -0.1], "ndc_norm_image_bounds"),
    ):
        extrinsics, intrinsics = opencv_camera(
            np.eye(3), np.array([0.1, 0.2, 5]), np.array(focal), np.array(principal), name, (480, 640)
        )
        np.testing.assert_allclose(extrinsics[:, :3], np.diag([-1, -1, 1]))
        np.testing.assert_allclose(extrinsics[:, 3], [-0.1, -0.2, 5])
        np.testing.assert_allclose(intrinsics, [[720, 0, 307.5], [0, 744, 263.5], [0, 0, 1]])
        pixel = intrinsics @ extrinsics[:, 3]
        np.testing.assert_allclose(pixel[:2] / pixel[2], [293.10, 233.74])


def test_unusable_poses() -> None:
    good = np.eye(4)[:3]
    assert pose_problem(good, np.eye(3)) is None
    for extrinsics, problem in (
        (good * [1, 1, np.nan, 1], "not finite"),
        (good + np.array([0, 0, 0, 1e5]), "T' has a length of 1.7e"),
        (good * [1, 1, -1, 1], "R' is no rotation"),  # a mirror
        (good * [1, 1, 1.01, 1], "R' is no rotation"),
    ):
        assert problem in str(pose_problem(extrinsics, np.eye(3)))
    assert "focal_length' is not positive" in str(pose_problem(good, np.diag([1.0, -1, 1])))
    assert "not finite" in str(pose_problem(good, np.diag([1.0, np.inf, 1])))
