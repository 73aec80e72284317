"""Camera conventions: round trips, hand-worked values, half turns, gradients."""

from __future__ import annotations

import math

import pytest
import torch

from hess_plugin.geometry.cameras import (
    camera_centers,
    decode_pose,
    encode_pose,
    invert_rigid,
    quaternion_to_rotation,
    rotation_to_quaternion,
    unproject_depth,
)


def random_rotations(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Proper rotations from the QR decomposition, independent of the code under test."""
    q, _ = torch.linalg.qr(torch.randn(*shape, 3, 3, dtype=torch.float64))
    return (q * torch.linalg.det(q)[..., None, None]).to(dtype)


def random_cameras(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    extrinsics = torch.cat([random_rotations(*shape), torch.randn(*shape, 3, 1).double()], dim=-1)
    intrinsics = torch.zeros(*shape, 3, 3, dtype=torch.float64)
    intrinsics[..., 0, 0], intrinsics[..., 1, 1] = 5 + torch.rand(shape), 9 + torch.rand(shape)
    intrinsics[..., 0, 2], intrinsics[..., 1, 2], intrinsics[..., 2, 2] = 7 / 2, 5 / 2, 1
    return extrinsics.to(dtype), intrinsics.to(dtype)


def axis_angle(axis: list[float], angle: float) -> torch.Tensor:
    """Matrix exponential of the cross-product matrix: the definition of a rotation about an axis."""
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0).tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(angle * cross)


AXES = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1], [1, -2, 3], [-0.1, 3, 0.2]]
ANGLES = [0.0, 1e-9, 1e-4, 1.0, math.pi / 2, math.pi - 1e-4, math.pi - 1e-9, math.pi, -math.pi / 2]


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("angle", ANGLES)
def test_quaternion_of_every_angle(axis: list[float], angle: float) -> None:
    rotation = axis_angle(axis, angle).requires_grad_()
    quaternion = rotation_to_quaternion(rotation)
    assert quaternion[3].item() >= 0
    assert quaternion[3].item() == pytest.approx(abs(math.cos(angle / 2)), abs=1e-12)
    assert quaternion.norm().item() == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(quaternion_to_rotation(quaternion), rotation, atol=1e-12, rtol=0)
    quaternion.square().dot(torch.arange(4.0, dtype=torch.float64)).backward()
    assert torch.isfinite(rotation.grad).all()


def test_quaternion_near_half_turn_in_float32() -> None:
    rotation = torch.stack([axis_angle(axis, math.pi - 1e-5) for axis in AXES])
    back = quaternion_to_rotation(rotation_to_quaternion(rotation.float()))
    torch.testing.assert_close(back, rotation.float(), atol=1e-6, rtol=0)


def test_quaternion_of_any_norm_and_sign() -> None:
    torch.manual_seed(0)
    quaternion = torch.randn(2, 5, 4, dtype=torch.float64)
    rotation = quaternion_to_rotation(quaternion)
    torch.testing.assert_close(rotation.mT @ rotation, torch.eye(3).double().expand(2, 5, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(2, 5).double())
    torch.testing.assert_close(quaternion_to_rotation(-3.7 * quaternion), rotation)


def test_rotation_composition() -> None:
    """An independent check of the handedness: the product of two turns about one axis adds the angles."""
    turns = [rotation_to_quaternion(axis_angle([1, 2, -1], angle)) for angle in (0.3, 0.5, 0.8)]
    first, second, both = map(quaternion_to_rotation, turns)
    torch.testing.assert_close(first @ second, both)
    quarter = quaternion_to_rotation(torch.tensor([0, 0, 1.0, 1.0]))
    torch.testing.assert_close(quarter, torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]))


def test_pose_round_trip() -> None:
    torch.manual_seed(1)
    extrinsics, intrinsics = random_cameras(2, 3, dtype=torch.float32)
    pose_enc = encode_pose(extrinsics, intrinsics, image_size=(5, 7))
    assert pose_enc.shape == (2, 3, 9)
    decoded_extrinsics, decoded_intrinsics = decode_pose(pose_enc, image_size=(5, 7))
    torch.testing.assert_close(decoded_extrinsics, extrinsics, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded_intrinsics, intrinsics, atol=1e-5, rtol=1e-5)


def test_encode_pose_is_float32_in_the_documented_order() -> None:
    extrinsics = torch.cat([axis_angle([0, 0, 1], math.pi / 2), torch.tensor([[1.0], [2], [3]])], dim=1)
    intrinsics = torch.diag(torch.tensor([4.0, 3 / math.sqrt(3), 1.0])).double()
    half = math.sqrt(0.5)
    expected = torch.tensor([1, 2, 3, 0, 0, half, half, 2 * math.pi / 3, math.pi / 2])
    torch.testing.assert_close(encode_pose(extrinsics, intrinsics, image_size=(6, 8)), expected)


def test_decode_pose_with_zero_field_of_view() -> None:
    pose_enc = torch.tensor([[0.1, 0.2, 0.3, 0, 0, 0, 2, 0.0, 1.0], [0, 0, 0, 0, 0, 0, 1, 1.0, 0.0]])
    pose_enc.requires_grad_()
    extrinsics, intrinsics = decode_pose(pose_enc, image_size=(4, 6))
    assert intrinsics[0, 1, 1] == math.inf
    assert intrinsics[1, 0, 0] == math.inf
    assert intrinsics[0, 0, 0].item() == pytest.approx(3 / math.tan(0.5))
    assert intrinsics[1, 1, 1].item() == pytest.approx(2 / math.tan(0.5))
    points = unproject_depth(torch.ones(2, 4, 6), extrinsics, intrinsics)
    assert (points[1, ..., 0] == 0).all()  # parallel rays: nothing lies off the axis
    points.square().sum().backward()
    assert torch.isfinite(pose_enc.grad).all()
    assert pose_enc.grad[0, 7] == 0
    assert pose_enc.grad[0, 8] != 0


def test_gradients_of_poses() -> None:
    torch.manual_seed(2)
    pose_enc = (torch.rand(2, 9, dtype=torch.float64) + 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: decode_pose(p, (4, 6)), (pose_enc,))
    rotation = random_rotations(3).requires_grad_()
    assert torch.autograd.gradcheck(rotation_to_quaternion, (rotation,))


@pytest.mark.parametrize("rows", [3, 4])
def test_invert_rigid(rows: int) -> None:
    torch.manual_seed(3)
    transform = torch.eye(4, dtype=torch.float64).repeat(2, 5, 1, 1)
    transform[..., :3, :] = random_cameras(2, 5)[0]
    inverse = invert_rigid(transform[..., :rows, :])
    torch.testing.assert_close(inverse, torch.linalg.inv(transform)[..., :rows, :])


def test_camera_centers_are_mapped_to_the_origin() -> None:
    torch.manual_seed(4)
    extrinsics, _ = random_cameras(2, 3)
    centers = camera_centers(extrinsics)
    in_camera = extrinsics[..., :3] @ centers[..., None] + extrinsics[..., 3:]
    torch.testing.assert_close(in_camera, torch.zeros_like(in_camera))


def test_unprojection_is_undone_by_projection() -> None:
    torch.manual_seed(5)
    extrinsics, intrinsics = random_cameras(2, 3)
    depth = torch.rand(2, 3, 5, 7, dtype=torch.float64) + 0.5
    points = unproject_depth(depth, extrinsics, intrinsics)
    assert points.shape == (2, 3, 5, 7, 3)
    for v, u in ((0, 0), (4, 6), (2, 3)):
        in_camera = extrinsics[..., :3] @ points[..., v, u, :, None] + extrinsics[..., 3:]
        pixel = (intrinsics @ in_camera / in_camera[..., 2:, :])[..., 0]
        torch.testing.assert_close(pixel, torch.tensor([u, v, 1.0]).double().expand(2, 3, 3))
        torch.testing.assert_close(in_camera[..., 2, 0], depth[..., v, u])


def test_unprojection_of_unknown_depth_and_one_pixel() -> None:
    extrinsics, intrinsics = random_cameras(4)
    points = unproject_depth(torch.zeros(4, 1, 1, dtype=torch.float64), extrinsics, intrinsics)
    torch.testing.assert_close(points[:, 0, 0], camera_centers(extrinsics))


BAD_SHAPES = [
    (lambda: quaternion_to_rotation(torch.ones(3)), r"quaternion must be \[..., 4\], got \[3\]"),
    (lambda: rotation_to_quaternion(torch.ones(3, 4)), r"rotation must be \[..., 3, 3\], got \[3, 4\]"),
    (lambda: encode_pose(torch.eye(4), torch.eye(3), (2, 2)), r"extrinsics must be \[..., 3, 4\]"),
    (lambda: decode_pose(torch.ones(2, 7), (2, 2)), r"pose_enc must be \[..., 9\], got \[2, 7\]"),
    (lambda: invert_rigid(torch.eye(3)), r"transform must be .* got \[3, 3\]"),
    (
        lambda: unproject_depth(torch.ones(2, 2), torch.eye(3, 4), torch.eye(4)),
        r"intrinsics must be \[..., 3, 3\], got \[4, 4\]",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD_SHAPES)
def test_camera_bad_shapes(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
