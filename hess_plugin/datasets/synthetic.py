"""Procedural scenes with exact cameras and depth, for training, calibration and tests.

A scene is a vector of uniform random numbers: `draw_numbers` draws such vectors, `render_scenes` turns them
into photos and ground truth (a pure function of tensors, fit for `torch.compile`). `synthetic_scene` does
both for one seed and draws on the CPU, so that every device shows the same scene.

`interior` says what stands in a scene. Cameras go along an arc around the z axis, from a sideways step to a
full turn, and look at its middle, or past it, or straight ahead; photos differ in exposure.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .base import Dataset
from .interior import FIELDS, between, build_shapes, build_texture, unit_vector
from .raycast import Cameras, Shapes, cast_rays, rotate, shade
from .scene import Scene

# Seeds of the dataset; training draws from 2^32 and above, examination and demo use others.
FIRST_SEED, NUM_SCENES = 10_000, 10_000

_SCENE_FIELDS = FIELDS | {"path": 8}
_VIEW_FIELDS = {"order": 1, "azimuth": 1, "radius": 1, "elevation": 1, "target": 3, "roll": 1, "gain": 4}


class SceneNumbers(NamedTuple):
    """Numbers in [0, 1) that define scenes; see `draw_numbers`."""

    scene: Tensor  # [B, numbers]
    view: Tensor  # [B, V, numbers]


class SceneBatch(NamedTuple):
    """Rendered scenes; conventions as in `Scene`, each tensor with a leading batch axis."""

    images: Tensor  # [B, V, 3, height, width] float32 in [0, 1]
    extrinsics: Tensor  # [B, V, 3, 4] float32, world to camera
    intrinsics: Tensor  # [B, V, 3, 3] float32, pixels
    depth: Tensor  # [B, V, height, width] float32, 0 where nothing is seen


class SyntheticDataset(Dataset):
    """The square scenes "synthetic-10000" to "synthetic-19999", with any number of views."""

    name: ClassVar[str] = "synthetic"

    def scene_ids(self) -> list[str]:
        """All of them, in the order of their seeds."""
        return [f"synthetic-{seed}" for seed in range(FIRST_SEED, FIRST_SEED + NUM_SCENES)]

    def choose(self, num_scenes: int, seed: int) -> list[str]:
        """The first scenes, whatever the seed: drawn from seeds of their own, any are a random sample."""
        return self.scene_ids()[:num_scenes]

    def load(self, scene_id: str, num_views: int | None, seed: int) -> Scene:
        """See `Dataset.load`; the scene's own seed draws its views, and `seed` changes nothing."""
        self.check_scene(scene_id)
        if num_views is None or num_views < 1:
            raise InputError(f"a synthetic scene needs a number of views of at least 1, got {num_views}.")
        seed_of_scene = int(scene_id.rpartition("-")[2])
        return synthetic_scene(seed_of_scene, num_views, image_size=self.image_width)


def synthetic_scene(
    seed: int,
    num_views: int,
    *,
    image_size: int | tuple[int, int] = 112,
    device: torch.device | str = "cpu",
) -> Scene:
    """The scene of a seed, with ground truth; the same on every device up to rounding.

    Args:
        seed: an integer of at least 0; each gives another scene.
        num_views: photos taken; their order along the orbit is random.
        image_size: (height, width) in pixels, or one number for a square; the field of view is horizontal.
        device: where the scene is rendered and returned.

    Raises:
        ValueError: for a negative seed, or fewer than one view or pixel.

    Example:
        >>> synthetic_scene(0, num_views=2, image_size=(24, 32)).images.shape
        torch.Size([2, 3, 24, 32])
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if seed < 0:
        raise ValueError(f"seed must be an integer of at least 0, got {seed!r}.")
    if num_views < 1 or min(size) < 1:
        raise ValueError(f"a scene needs at least 1 view and 1 pixel, got {num_views} views of size {size}.")
    numbers = draw_numbers(1, num_views, torch.Generator().manual_seed(seed))
    batch = render_scenes(SceneNumbers(*(part.to(device) for part in numbers)), size)
    return Scene(f"synthetic-{seed}", **{name: tensor[0] for name, tensor in batch._asdict().items()})


def draw_numbers(num_scenes: int, num_views: int, generator: torch.Generator) -> SceneNumbers:
    """Uniform numbers that define B scenes, on the generator's device."""
    shapes = (num_scenes, sum(_SCENE_FIELDS.values())), (num_scenes, num_views, sum(_VIEW_FIELDS.values()))
    device = generator.device
    return SceneNumbers(*(torch.rand(shape, generator=generator, device=device) for shape in shapes))


def render_scenes(
    numbers: SceneNumbers,
    image_size: tuple[int, int],
    orbit_span: Tensor | None = None,  # [B] radians, in place of the drawn 0.6 to 6 (for a curriculum)
    walks: Tensor | None = None,  # [B] bool: cameras walk through the room, if there is one; for training
) -> SceneBatch:
    """Photos, cameras and depth of the scenes that the numbers define."""
    of_scene, of_view = _split(numbers.scene, _SCENE_FIELDS), _split(numbers.view, _VIEW_FIELDS)
    shapes = _build_shapes(of_scene)
    walks = None if walks is None else walks & shapes.has_room
    cameras, intrinsics = _place_cameras(of_scene["path"], of_view, image_size, orbit_span, walks)
    depth, surface = cast_rays(shapes, cameras)
    images = shade(shapes, build_texture(of_scene, of_view["gain"], shapes), cameras, depth, surface)
    to_camera = cameras.rotation.mT
    extrinsics = torch.cat([to_camera, -rotate(to_camera, cameras.position)[..., None]], -1)
    return SceneBatch(images, extrinsics, intrinsics, torch.where(depth.isfinite(), depth, 0.0))


def _build_shapes(of_scene: dict[str, Tensor]) -> Shapes:
    """A scene whose room clears all cameras of its path."""
    ones = torch.ones_like(of_scene["size"])
    radius, elevation = (quantity(of_scene["path"][:, :2], ones) for quantity in (_radius, _elevation))
    return build_shapes(of_scene, radius, radius * elevation.sin())


def _radius(path: Tensor, own: Tensor) -> Tensor:
    """Distances from the origin of cameras with these numbers of their own [B, V]."""
    return between((path[:, :1] + own) / 2, 2.0, 4.4)


def _elevation(path: Tensor, own: Tensor) -> Tensor:
    """Angles above the stage, radians, likewise; low ones are the more frequent."""
    return between((0.7 * path[:, 1:2] + 0.3 * own) ** 1.5, 0.1, 1.05)


def _place_cameras(
    path: Tensor,
    of_view: dict[str, Tensor],
    image_size: tuple[int, int],
    orbit_span: Tensor | None,
    walks: Tensor | None,
) -> tuple[Cameras, Tensor]:
    """Cameras on an arc, or its chord, and their intrinsics [B, V, 3, 3]."""
    span = between(path[:, 3:4], 0.6, 6.0) if orbit_span is None else orbit_span[:, None]
    place = (of_view["order"][..., 0].argsort(1) + of_view["azimuth"][..., 0]) / of_view["order"].shape[1]
    position, ahead = _follow_arc(path, span, place, of_view)
    if walks is not None:
        other_position, other_ahead = _walk_along_chord(path, span, place, of_view)
        position, ahead = (
            torch.where(walks[:, None, None], other, own)
            for other, own in ((other_position, position), (other_ahead, ahead))
        )
    rotation = _look_along(ahead, 0.4 * (2 * of_view["roll"][..., 0] - 1) ** 3)

    height, width = image_size
    focal = (width / 2) / torch.tan(between(path[:, 7:], 0.6, 1.3) / 2)  # [B, 1]
    columns, rows = (torch.arange(n, device=focal.device) - (n - 1) / 2 for n in (width, height))
    x, y = columns / focal[..., None, None], rows[:, None] / focal[..., None, None]
    none, one = torch.zeros_like(focal), torch.ones_like(focal)
    u, v = (one * ((n - 1) / 2) for n in (width, height))
    intrinsics = torch.stack([focal, none, u, none, focal, v, none, none, one], -1).unflatten(-1, (3, 3))
    return Cameras(position, rotation, x, y), intrinsics.expand(-1, place.shape[1], -1, -1)


def _follow_arc(
    path: Tensor, span: Tensor, place: Tensor, of_view: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Positions [B, V, 3] around the z axis, `place` in [0, 1) of the span, and where cameras look."""
    start, side, spread, tilt = (path[:, i, None] for i in (2, 4, 5, 6))
    own_radius, own_elevation = of_view["radius"][..., 0], of_view["elevation"][..., 0]
    azimuth = start + span / (2 * math.pi) * place
    position = _radius(path, own_radius)[..., None] * unit_vector(
        azimuth, _elevation(path, own_elevation).sin()
    )
    middle = unit_vector(start + span / (4 * math.pi), torch.zeros_like(start))[..., :2]
    aside, above = (2 * of_view["target"] - 1).split([2, 1], -1)
    # On a short arc, some scenes' cameras look straight ahead rather than at one point.
    along = (side * (1 - span / 3).clamp(min=0))[..., None]
    aside = between(spread**2, 0.1, 1.2)[..., None] * aside + along * (position[..., :2] - 3.2 * middle)
    target = torch.cat([aside, between(tilt, -0.5, 0.6)[..., None] + 0.4 * above], -1)
    return position, target - position


def _walk_along_chord(
    path: Tensor, span: Tensor, place: Tensor, of_view: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """As `_follow_arc`, straight and level; cameras look to any side and turn slowly, whatever the motion."""
    start, side, turn, tilt = (path[:, i, None] for i in (2, 4, 5, 6))
    span = span.clamp(max=math.pi) / (2 * math.pi)
    height = _elevation(path, torch.zeros_like(start)).sin()
    radius = _radius(path, torch.zeros_like(start))[..., None]
    first, last = radius * unit_vector(start, height), radius * unit_vector(start + span, height)
    position = first + place[..., None] * (last - first)
    position = position + 0.1 * (2 * of_view["target"] - 1)
    inward = start + span / 2 + 0.5
    heading = inward + 0.25 * (2 * side - 1) + 0.15 * (2 * turn - 1) * (2 * place - 1)
    heading = heading + 0.03 * (2 * of_view["radius"][..., 0] - 1)
    down = between(tilt, -0.1, 0.55) + 0.1 * (2 * of_view["elevation"][..., 0] - 1)
    return position, unit_vector(heading, -down.sin())


def _look_along(direction: Tensor, roll: Tensor) -> Tensor:
    """Rotations [..., 3, 3], camera to world, of cameras that look along `direction`, rolled from upright."""
    ahead = F.normalize(direction, dim=-1)
    x, y, _ = ahead.unbind(-1)
    right = F.normalize(torch.stack([y, -x, torch.zeros_like(x)], -1), dim=-1)  # ahead × up
    down = torch.linalg.cross(ahead, right)
    cos, sin = roll.cos()[..., None], roll.sin()[..., None]
    return torch.stack([cos * right + sin * down, cos * down - sin * right, ahead], -1)


def _split(numbers: Tensor, fields: dict[str, int]) -> dict[str, Tensor]:
    return dict(zip(fields, numbers.split(list(fields.values()), -1), strict=True))
