"""Layers of π³ alone: small decoders and heads, the heads in float32 also in a bfloat16 model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Block, HeadNorm, at_least_float32

DECODER_DIM = 1024  # the same in every size of π³
DECODER_NUM_HEADS = 16
DECODER_DEPTH = 5
CAMERA_DIM = 512


class FrameDecoder(nn.Module):
    """Five blocks with attention inside each view, without qk-norm and layer scale."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.head_dim = DECODER_DIM // DECODER_NUM_HEADS
        self.projects = nn.Linear(in_dim, DECODER_DIM)
        blocks = (
            Block(DECODER_DIM, DECODER_NUM_HEADS, norm_eps=1e-6, layer_scale_init=None, rope=True)
            for _ in range(DECODER_DEPTH)
        )
        self.blocks = nn.ModuleList(blocks)
        self.linear_out = nn.Linear(DECODER_DIM, out_dim)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        """[N, P, in_dim] of N views and the RoPE angles `pos` [P, head_dim] to [N, P, out_dim]."""
        x = self.projects(x)
        for block in self.blocks:
            x = block(x, pos=pos)
        return self.linear_out(x)


class SameDtypeHeadNorm(HeadNorm):
    """The qk-norm of π³: back in the dtype of its input, so that under autocast RoPE runs in bfloat16."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, T, D] to the same shape and dtype."""
        return super().forward(x).to(x.dtype)


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32, also with weights of lower precision."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return F.linear(*(at_least_float32(t) for t in (x, self.weight, self.bias)))


class PatchesToPixels(nn.Module):
    """One linear layer that gives every pixel of a patch its channels."""

    def __init__(self, in_dim: int, channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = Float32Linear(in_dim, channels * patch_size**2)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patch tokens [N, rows·cols, in_dim] to [N, height, width, channels] float32."""
        maps = self.proj(x).transpose(1, 2).unflatten(2, grid)
        return F.pixel_shuffle(maps, self.patch_size).permute(0, 2, 3, 1)


class ResidualMlp(nn.Module):
    """Three linear layers with ReLU, added to their input (1×1 convolutions in the original's names)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.res_conv1 = Float32Linear(dim, dim)
        self.res_conv2 = Float32Linear(dim, dim)
        self.res_conv3 = Float32Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to the same shape."""
        out = F.relu(self.res_conv1(x))
        out = F.relu(self.res_conv2(out))
        return x + F.relu(self.res_conv3(out))


class Pi3CameraHead(nn.Module):
    """One pose per view from the mean of its patch tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.res_conv = nn.ModuleList(ResidualMlp(dim) for _ in range(2))
        self.more_mlps = nn.Sequential(Float32Linear(dim, dim), nn.ReLU(), Float32Linear(dim, dim), nn.ReLU())
        self.fc_t = Float32Linear(dim, 3)
        self.fc_rot = Float32Linear(dim, 9)

    def forward(self, x: Tensor) -> Tensor:
        """Patch tokens [N, rows·cols, dim] to camera-to-world poses [N, 4, 4] float32."""
        for block in self.res_conv:
            x = block(x)
        x = self.more_mlps(x.mean(dim=1))
        rotation = nearest_rotation(F.normalize(self.fc_rot(x).unflatten(-1, (3, 3)), dim=-1))
        pose = torch.cat((rotation, self.fc_t(x)[..., None]), dim=-1)
        last_row = pose.new_tensor([0, 0, 0, 1]).expand(len(pose), 1, 4)
        return torch.cat((pose, last_row), dim=1)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotations R nearest to `matrix` M [..., 3, 3]: M = A Σ Bᵀ gives R = A diag(1, 1, det(A Bᵀ)) Bᵀ.

    The gradient through a singular value decomposition is infinite where singular values coincide, and a good
    prediction is almost a rotation, with all three near 1. So it is taken from what defines R: Rᵀ M = P is
    symmetric, hence a change dM turns R by the vector ω (dR = R [ω]ₓ), (tr(P) I - P) ω = vee(Rᵀ dM - dMᵀ R).
    That is finite wherever R is unique; elsewhere it is bounded.

    Example:
        >>> nearest_rotation(torch.diag(torch.tensor([3.0, 2.0, -1.0]))).diagonal()
        tensor([1., 1., 1.])
    """
    with torch.no_grad():
        a, sigma, bt = torch.linalg.svd(matrix)
        b = bt.mT
        sign = torch.ones_like(sigma)
        sign[..., 2] = torch.linalg.det(a @ bt)
        rotation = (a * sign[..., None, :]) @ bt
        sigma = sigma * sign  # eigenvalues of P in the basis B
        stiffness = (sigma.sum(-1, keepdim=True) - sigma).clamp(min=1e-6)
        inverse = (b / stiffness[..., None, :]) @ b.mT
    residual = rotation.mT @ matrix
    residual = residual - residual.mT
    residual = torch.stack((residual[..., 2, 1], residual[..., 0, 2], residual[..., 1, 0]), dim=-1)
    turn = (inverse @ (residual - residual.detach())[..., None])[..., 0]  # zero, but not its gradient
    return rotation + torch.linalg.cross(rotation, turn[..., None, :].expand_as(rotation))
