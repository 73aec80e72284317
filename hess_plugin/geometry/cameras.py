"""Camera conventions: quaternions, VGGT's pose encoding, rigid inverses and unprojection.

Convention (everywhere in this package): OpenCV cameras, +x right, +y down, +z forward. `extrinsics = [R | t]`
maps world to camera, `x_camera = R x_world + t`. `intrinsics` K map to pixels, `(u, v, 1) = K x_camera / z`,
with integer coordinates at pixel centres and no skew. `image_size` is (height, width) in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quaternion_to_rotation(quaternion: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] of any norm but zero.

    Convention: order x, y, z, w (scalar last); q and -q give the same rotation.

    Example:
        A quarter turn about +z takes +x to +y:

        >>> quaternion_to_rotation(torch.tensor([0.0, 0.0, 1.0, 1.0])) @ torch.tensor([1.0, 0.0, 0.0])
        tensor([0., 1., 0.])
    """
    _check_shape("quaternion", quaternion, (4,))
    x, y, z, w = quaternion.unbind(-1)
    s = 2 / (quaternion * quaternion).sum(-1)
    entries = [
        *(1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)),
        *(s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)),
        *(s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)),
    ]
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def rotation_to_quaternion(rotation: Tensor) -> Tensor:
    """Unit quaternions [..., 4] of rotation matrices [..., 3, 3], scalar last and not negative.

    Each of the four components can be read off the diagonal and the other three divided by it. The largest is
    used: it is at least 1/2, so nothing cancels near 180 degrees and gradients stay finite everywhere.

    Convention: order x, y, z, w; the sign is chosen so that w >= 0 (at w = 0 either sign may come out).

    Example:
        >>> half_turn_about_y = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
        >>> rotation_to_quaternion(half_turn_about_y)
        tensor([0., 1., 0., 0.])
    """
    _check_shape("rotation", rotation, (3, 3))
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = rotation.flatten(-2).unbind(-1)
    # Row i is 4 q_i (x, y, z, w); its diagonal entry 4 q_i² says which component is the largest.
    rows = [
        *(1 + m00 - m11 - m22, m10 + m01, m02 + m20, m21 - m12),
        *(m10 + m01, 1 - m00 + m11 - m22, m12 + m21, m02 - m20),
        *(m02 + m20, m12 + m21, 1 - m00 - m11 + m22, m10 - m01),
        *(m21 - m12, m02 - m20, m10 - m01, 1 + m00 + m11 + m22),
    ]
    candidates = torch.stack(rows, dim=-1).unflatten(-1, (4, 4))
    largest = candidates.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    row = candidates.take_along_dim(largest, dim=-2).squeeze(-2)
    quaternion = row / (2 * row.take_along_dim(largest.squeeze(-1), dim=-1).sqrt())
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


def encode_pose(extrinsics: Tensor, intrinsics: Tensor, image_size: tuple[int, int]) -> Tensor:
    """VGGT's pose encoding [..., 9] float32 of cameras [..., 3, 4] and [..., 3, 3].

    Convention: translation t of the world-to-camera transform (3), quaternion x, y, z, w of its rotation (4),
    vertical then horizontal field of view in radians (2). The principal point is not encoded.

    Example:
        A focal length of half the image is a field of view of 90 degrees, here on the width:

        >>> camera = torch.eye(3, 4), torch.diag(torch.tensor([7.0, 7.0, 1.0]))
        >>> encode_pose(*camera, image_size=(7, 14))
        tensor([0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 1.0000, 0.9273, 1.5708])
    """
    _check_shape("extrinsics", extrinsics, (3, 4))
    _check_shape("intrinsics", intrinsics, (3, 3))
    height, width = image_size
    quaternion = rotation_to_quaternion(extrinsics[..., :3])
    fov_vertical = 2 * torch.atan((height / 2) / intrinsics[..., 1, 1])
    fov_horizontal = 2 * torch.atan((width / 2) / intrinsics[..., 0, 0])
    fov = torch.stack([fov_vertical, fov_horizontal], dim=-1)
    return torch.cat([extrinsics[..., 3], quaternion, fov], dim=-1).float()


def decode_pose(pose_enc: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Extrinsics [..., 3, 4] (world to camera) and intrinsics [..., 3, 3] of VGGT's pose encoding [..., 9].

    The principal point is put at (width / 2, height / 2), as VGGT does. A field of view of exactly 0, which
    VGGT's final ReLU can give, decodes to an infinite focal length; its gradient is 0 instead of NaN.

    Example:
        >>> pose_enc = torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 1.0, 1.5708, 1.5708])
        >>> extrinsics, intrinsics = decode_pose(pose_enc, image_size=(8, 16))
        >>> intrinsics.round(decimals=3)
        tensor([[8., 0., 8.],
                [0., 4., 4.],
                [0., 0., 1.]])
        >>> camera_centers(extrinsics)
        tensor([ 0.,  0., -2.])
    """
    _check_shape("pose_enc", pose_enc, (9,))
    height, width = image_size
    rotation = quaternion_to_rotation(pose_enc[..., 3:7])
    extrinsics = torch.cat([rotation, pose_enc[..., :3, None]], dim=-1)
    zero, one = torch.zeros_like(pose_enc[..., 0]), torch.ones_like(pose_enc[..., 0])
    entries = [
        *(_focal_length(pose_enc[..., 8], width), zero, one * (width / 2)),
        *(zero, _focal_length(pose_enc[..., 7], height), one * (height / 2)),
        *(zero, zero, one),
    ]
    return extrinsics, torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def invert_rigid(transform: Tensor) -> Tensor:
    """Inverse of rigid transforms [R | t], [..., 3, 4] or [..., 4, 4]; the same shape comes back.

    Convention: world-to-camera in, camera-to-world out, and the reverse: [Rᵀ | -Rᵀt].

    Example:
        >>> invert_rigid(torch.tensor([[1.0, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0]]))[0]
        tensor([ 1.,  0.,  0., -3.])
    """
    if transform.shape[-2:] not in ((3, 4), (4, 4)):
        raise ValueError(
            f"transform must be [..., 3, 4] or [..., 4, 4], got {list(transform.shape)}; "
            "pass rotation and translation side by side."
        )
    rotation = transform[..., :3, :3].mT
    upper = torch.cat([rotation, -rotation @ transform[..., :3, 3:]], dim=-1)
    return torch.cat([upper, transform[..., 3:, :]], dim=-2)


def camera_centers(extrinsics: Tensor) -> Tensor:
    """Positions of the cameras in the world, -Rᵀt, [..., 3], of world-to-camera extrinsics [..., 3, 4].

    Example:
        A camera that sees the world's origin two units ahead stands at z = -2:

        >>> camera_centers(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2]]))[2]
        tensor(-2.)
    """
    return invert_rigid(extrinsics)[..., :3, 3]


def unproject_depth(depth: Tensor, extrinsics: Tensor, intrinsics: Tensor) -> Tensor:
    """World points [..., height, width, 3] of depth maps [..., height, width].

    Args:
        depth: z along the optical axis, in world units; 0 (unknown) gives the camera's centre.
        extrinsics: [..., 3, 4], world to camera.
        intrinsics: [..., 3, 3], pixels, without skew.

    Example:
        The pixel one focal length right of the principal point lies at x = z:

        >>> depth = torch.full((1, 3), 5.0)
        >>> unproject_depth(depth, torch.eye(3, 4), torch.diag(torch.tensor([2.0, 2.0, 1.0])))[0, 2]
        tensor([5., 0., 5.])
    """
    _check_shape("extrinsics", extrinsics, (3, 4))
    _check_shape("intrinsics", intrinsics, (3, 3))
    height, width = depth.shape[-2:]
    v = torch.arange(height, dtype=depth.dtype, device=depth.device)[:, None]
    u = torch.arange(width, dtype=depth.dtype, device=depth.device)
    focal_x, focal_y, center_x, center_y = (
        intrinsics[..., row, column, None, None] for row, column in ((0, 0), (1, 1), (0, 2), (1, 2))
    )
    in_camera = torch.stack(
        [(u - center_x) * depth / focal_x, (v - center_y) * depth / focal_y, depth], dim=-1
    )
    rotation, translation = extrinsics[..., None, :, :3], extrinsics[..., None, None, :, 3]
    return (in_camera - translation) @ rotation  # row vectors: x R is Rᵀ x


def _focal_length(fov: Tensor, pixels: int) -> Tensor:
    """Focal length in pixels of a field of view in radians, with a gradient of 0 where it is infinite."""
    safe = torch.where(fov == 0, 1, fov)
    return torch.where(fov == 0, torch.inf, (pixels / 2) / torch.tan(safe / 2))


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape[-len(shape) :]) != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name} must be [..., {expected}], got {list(tensor.shape)}.")
