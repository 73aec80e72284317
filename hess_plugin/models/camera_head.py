"""Camera head: one token per view to a pose, refined step by step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .layers import Block, Mlp, at_least_float32

POSE_SIZE = 9  # translation (3), quaternion x, y, z, w (4), vertical and horizontal field of view (2)
NUM_REFINEMENTS = 4


class CameraHead(nn.Module):
    """Predicts a pose and adds corrections to it; each step sees the views' tokens and the last pose."""

    def __init__(self, dim: int, trunk_depth: int, num_heads: int, layer_scale_init: float) -> None:
        super().__init__()
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_SIZE))
        self.trunk = nn.Sequential(
            *(
                Block(dim, num_heads, norm_eps=1e-5, layer_scale_init=layer_scale_init)
                for _ in range(trunk_depth)
            )
        )
        self.token_norm = nn.LayerNorm(dim, eps=1e-5)
        self.trunk_norm = nn.LayerNorm(dim, eps=1e-5)
        self.embed_pose = nn.Linear(POSE_SIZE, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.adaln_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.pose_branch = Mlp(dim, dim // 2, POSE_SIZE)

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Camera tokens [B, V, 2C] to the pose encoding [B, V, 9] after each refinement, in float32.

        The next step corrects the pose before the ReLU that keeps fields of view positive, and detached:
        gradients reach the tokens in every step, but not through earlier poses.
        """
        dtype = self.embed_pose.weight.dtype
        tokens = self.token_norm(tokens.to(dtype))
        pose, poses = None, []
        for _ in range(NUM_REFINEMENTS):
            known = self.empty_pose_tokens if pose is None else pose.detach().to(dtype)
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(known)).chunk(3, dim=-1)
            x = self.trunk(tokens + gate * (self.adaln_norm(tokens) * (1 + scale) + shift))
            correction = at_least_float32(self.pose_branch(self.trunk_norm(x)))
            pose = correction if pose is None else pose.detach() + correction
            poses.append(torch.cat((pose[..., :7], pose[..., 7:].relu()), dim=-1))
        return poses
