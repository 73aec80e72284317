"""Which points of a reconstruction its other photos confirm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.cameras import camera_centers

MAX_OTHERS = 16  # photos that judge a point; those nearest to the one that shows it
TOLERANCE = 0.05  # of the depth: nearer than that, two points are taken for one surface


def stability(
    points: Tensor,  # [V, height, width, 3], world
    depth: Tensor,  # [V, height, width], NaN where a photo is not to judge
    extrinsics: Tensor,  # [V, 3, 4], world to camera
    intrinsics: Tensor,  # [V, 3, 3], pixels
) -> Tensor:  # [V, height, width] int64
    """How many more photos confirm each point than contradict it, by their depth where it would be seen.

    A photo confirms a point at the depth that it shows itself, and contradicts one that would hide what it
    shows. Points behind that are hidden, which says nothing, as do points outside of a photo. "Real-time
    visibility-based fusion of depth maps" (Merrell et al., 2007) keeps points by such votes.
    """
    height, width = depth.shape[1:]
    size = torch.tensor([width, height]).to(points)
    centers, projection = camera_centers(extrinsics), intrinsics @ extrinsics  # [V, 3, 4]
    votes = torch.zeros(depth.shape, dtype=torch.long, device=depth.device)
    for view in range(len(depth)):
        nearness = (centers - centers[view]).norm(dim=-1)
        nearness[view] = torch.inf
        others = nearness.argsort()[: min(MAX_OTHERS, len(depth) - 1)]
        seen = projection[others, :, :3].flatten(0, 1) @ points[view].flatten(0, 1).mT
        seen = seen.unflatten(0, (-1, 3)) + projection[others, :, 3:]  # [others, 3, height · width]
        distance = seen[:, 2]
        pixel = seen[:, :2].mT / distance.clamp(min=1e-6)[..., None]
        grid = ((2 * pixel + 1) / size - 1)[:, :, None]  # -1 to 1 over the photo, edge to edge
        shown = F.grid_sample(depth[others, None], grid, "nearest", "zeros", align_corners=False)[:, 0, :, 0]
        confirmed = (shown - distance).abs() < TOLERANCE * distance
        contradicted = (distance > 0) & (distance < (1 - TOLERANCE) * shown)
        votes[view] = (confirmed.sum(0) - contradicted.sum(0)).view(height, width)
    return votes
