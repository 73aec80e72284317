"""Procedural scenes with exact cameras and depth, for training, calibration and tests.

A scene is a vector of uniform random numbers: `draw_numbers` draws such vectors, `render_scenes` turns them
into photos and ground truth (a pure function of tensors, fit for `torch.compile`). `synthetic_scene` does
both for one seed and draws on the CPU, so that every device shows the same scene.

World: +z is up; a textured disc at z = 0 carries ellipsoids and boxes, and cameras orbit around it. Half of
the scenes stand in a closed room whose floor is a little lower, the others before an empty grey background.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..geometry.cameras import quaternion_to_rotation
from .base import Dataset
from .raycast import Cameras, Shapes, Texture, cast_rays, rotate, shade
from .scene import Scene

# Seeds of the dataset; training draws from 2^32 and above, examination and demo use others.
FIRST_SEED, NUM_SCENES = 10_000, 10_000
NUM_OBJECTS = 8
_SURFACES = NUM_OBJECTS + 2  # and the disc and the room
_FREQUENCIES = (3.0, 7.0, 14.0)  # of the texture's waves, radians per world unit
_AMPLITUDES = (0.22, 0.16, 0.10)

# How many numbers each property takes, per scene and per view. The order decides what a seed shows.
_SCENE_FIELDS = {
    **{"kind": NUM_OBJECTS, "place": NUM_OBJECTS * 3, "half": NUM_OBJECTS * 3, "turn": NUM_OBJECTS * 3},
    **{"color": _SURFACES * 3, "wave": _SURFACES * 27, "phase": _SURFACES * 9, "amplitude": _SURFACES * 9},
    **{"light": 3, "gain": 4, "disc": 1, "room": 6, "orbit": 5},
}
_VIEW_FIELDS = {"order": 1, "azimuth": 1, "radius": 1, "elevation": 1, "target": 3, "roll": 1}


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
    orbit_span: Tensor | None = None,  # [B] radians, in place of the drawn 1 to 6 (for a curriculum)
) -> SceneBatch:
    """Photos, cameras and depth of the scenes that the numbers define."""
    of_scene, of_view = _split(numbers.scene, _SCENE_FIELDS), _split(numbers.view, _VIEW_FIELDS)
    shapes = _build_shapes(of_scene)
    cameras, intrinsics = _place_cameras(of_scene["orbit"], of_view, image_size, orbit_span)
    depth, surface = cast_rays(shapes, cameras)
    images = shade(shapes, _build_texture(of_scene), cameras, depth, surface)
    to_camera = cameras.rotation.mT
    extrinsics = torch.cat([to_camera, -rotate(to_camera, cameras.position)[..., None]], -1)
    return SceneBatch(images, extrinsics, intrinsics, torch.where(depth.isfinite(), depth, 0.0))


def _build_shapes(of_scene: dict[str, Tensor]) -> Shapes:
    kind, place, half, turn = (of_scene[name] for name in ("kind", "place", "half", "turn"))
    half = _between(half.unflatten(1, (-1, 3)), 0.15, 0.5)
    rotation = _random_rotation(turn.unflatten(1, (-1, 3)))
    radius, angle, lift = place.unflatten(1, (-1, 3)).unbind(-1)
    radius, angle = 1.2 * radius.sqrt(), 2 * math.pi * angle
    reach = (rotation[..., 2, :] * half).norm(dim=-1)  # of an ellipsoid, above its centre
    height = 0.9 * reach + 0.5 * lift**3  # most stand on the disc, some float
    centre = torch.stack([radius * angle.cos(), radius * angle.sin(), height], -1)

    has_room, long, wide, ceiling, floor, corner = of_scene["room"].unbind(-1)
    ceiling, floor = _between(ceiling, 3.8, 5.5), -_between(floor, 0.02, 0.8)  # cameras stay below 3.5
    none, corner = torch.zeros_like(corner), math.pi / 2 * corner  # half of a turn by up to π
    room_half = torch.stack([_between(long, 4.6, 7.0), _between(wide, 4.6, 7.0), (ceiling - floor) / 2], -1)
    room_centre = torch.stack([none, none, (ceiling + floor) / 2], -1)
    room_turn = quaternion_to_rotation(torch.stack([none, none, corner.sin(), corner.cos()], -1))
    disc_half = _between(of_scene["disc"], 1.6, 2.8).expand(-1, 3)
    disc_turn = torch.eye(3, device=half.device).expand_as(room_turn)
    return Shapes(
        is_box=torch.cat([kind < 0.6, torch.ones_like(kind[:, :2]) > 0], 1),
        centre=torch.cat([centre, torch.zeros_like(room_centre)[:, None], room_centre[:, None]], 1),
        rotation=torch.cat([rotation, disc_turn[:, None], room_turn[:, None]], 1),
        half=torch.cat([half, disc_half[:, None], room_half[:, None]], 1),
        has_room=has_room < 0.5,
    )


def _build_texture(of_scene: dict[str, Tensor]) -> Texture:
    wave = of_scene["wave"].unflatten(1, (_SURFACES, 3, 3, 3))
    phase, amplitude = (of_scene[name].unflatten(1, (_SURFACES, 3, 3)) for name in ("phase", "amplitude"))
    around, height, stretch = wave.unbind(-1)
    frequency, strength = (
        torch.stack([torch.full((3,), value, device=wave.device) for value in values])
        for values in (_FREQUENCIES, _AMPLITUDES)
    )  # [3 waves, 3 colours]; filled on the device, since a copy from the host would stop a GPU's queue
    light_around, light_height, ambient = of_scene["light"].unbind(-1)
    exposure, balance = of_scene["gain"].split([1, 3], -1)
    return Texture(
        base=_between(of_scene["color"].unflatten(1, (-1, 3)), 0.25, 0.85),
        wave=_unit_vector(around, 2 * height - 1) * (frequency * _between(stretch, 0.75, 1.3))[..., None],
        phase=2 * math.pi * phase,
        amplitude=strength * _between(amplitude, 0.5, 1.4),
        light=_unit_vector(light_around, _between(light_height, 0.3, 0.95)),
        ambient=_between(ambient, 0.35, 0.65)[:, None],
        gain=_between(exposure, 0.7, 1.4) * _between(balance, 0.85, 1.15),
    )


def _place_cameras(
    of_orbit: Tensor, of_view: dict[str, Tensor], image_size: tuple[int, int], orbit_span: Tensor | None
) -> tuple[Cameras, Tensor]:
    """Cameras on an arc that look inwards, and their intrinsics [B, V, 3, 3]."""
    start, span, radius, elevation, fov = of_orbit[..., None].unbind(1)  # [B, 1] each
    span = _between(span, 1.0, 6.0) if orbit_span is None else orbit_span[:, None]
    order, jitter, own_radius, own_elevation, roll = (
        of_view[name].squeeze(-1) for name in ("order", "azimuth", "radius", "elevation", "roll")
    )  # [B, V] each
    place = order.argsort(1)
    azimuth = 2 * math.pi * start + span * (place + jitter) / order.shape[1]
    radius = _between((radius + own_radius) / 2, 3.0, 4.2)
    elevation = _between((elevation + own_elevation) / 2, 0.25, 0.95)
    position = radius[..., None] * _unit_vector(azimuth / (2 * math.pi), elevation.sin())
    aside, above = of_view["target"][..., :2], of_view["target"][..., 2:]
    target = torch.cat([_between(aside, -0.4, 0.4), _between(above, 0.0, 0.6)], -1)
    rotation = _look_along(target - position, 0.1 * roll - 0.05)

    height, width = image_size
    focal = (width / 2) / torch.tan(_between(fov, 0.75, 1.1) / 2)  # [B, 1]
    columns, rows = (torch.arange(n, device=focal.device) - (n - 1) / 2 for n in (width, height))
    x, y = columns / focal[..., None, None], rows[:, None] / focal[..., None, None]
    none, one = torch.zeros_like(focal), torch.ones_like(focal)
    u, v = (one * ((n - 1) / 2) for n in (width, height))
    intrinsics = torch.stack([focal, none, u, none, focal, v, none, none, one], -1).unflatten(-1, (3, 3))
    return Cameras(position, rotation, x, y), intrinsics.expand(-1, order.shape[1], -1, -1)


def _look_along(direction: Tensor, roll: Tensor) -> Tensor:
    """Rotations [..., 3, 3], camera to world, of cameras that look along `direction`, rolled from upright."""
    ahead = F.normalize(direction, dim=-1)
    x, y, _ = ahead.unbind(-1)
    right = F.normalize(torch.stack([y, -x, torch.zeros_like(x)], -1), dim=-1)  # ahead × up
    down = torch.linalg.cross(ahead, right)
    cos, sin = roll.cos()[..., None], roll.sin()[..., None]
    return torch.stack([cos * right + sin * down, cos * down - sin * right, ahead], -1)


def _random_rotation(numbers: Tensor) -> Tensor:
    """Uniform rotations [..., 3, 3] of uniform numbers [..., 3] (Shoemake's quaternions)."""
    size, first, second = numbers[..., 0], 2 * math.pi * numbers[..., 1], 2 * math.pi * numbers[..., 2]
    small, large = (1 - size).sqrt(), size.sqrt()
    parts = [small * first.sin(), small * first.cos(), large * second.sin(), large * second.cos()]
    return quaternion_to_rotation(torch.stack(parts, -1))


def _unit_vector(turns: Tensor, height: Tensor) -> Tensor:
    """Unit vectors [..., 3] at an azimuth in turns and a z coordinate."""
    flat, angle = (1 - height * height).sqrt(), 2 * math.pi * turns
    return torch.stack([flat * angle.cos(), flat * angle.sin(), height], -1)


def _between(numbers: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * numbers


def _split(numbers: Tensor, fields: dict[str, int]) -> dict[str, Tensor]:
    return dict(zip(fields, numbers.split(list(fields.values()), -1), strict=True))
