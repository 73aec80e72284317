"""Procedural scenes with exact cameras and depth, for training, calibration and tests.

A scene is a vector of uniform random numbers: `draw_numbers` draws such vectors, `render_scenes` turns them
into photos and ground truth (a pure function of tensors, fit for `torch.compile`). `synthetic_scene` does
both for one seed and draws on the CPU, so that every device shows the same scene.

`interior` says what stands in a scene, `camera_paths` from where it is seen; photos differ in exposure.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .base import Dataset
from .camera_paths import CameraPath, camera_elevation, camera_radius, place_cameras
from .interior import FIELDS, between, build_shapes, build_texture
from .raycast import Cameras, Shapes, Texture, cast_rays, rotate, shade
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


class SceneSettings(NamedTuple):
    """In what scenes of a training differ from those of the data set, whose settings `settings_of` gives."""

    orbit_span: Tensor  # [B] radians, how far along the arc cameras stand
    path_kind: Tensor  # [B] int64 of `CameraPath`, arcs where there is no room
    furnished: Tensor  # [B] bool, see `build_shapes` and `build_texture`
    field_of_view: Tensor  # [B] radians, horizontal


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
    path_kind: CameraPath = CameraPath.ARC,
) -> Scene:
    """The scene of a seed, with ground truth; the same on every device up to rounding.

    Args:
        seed: an integer of at least 0; each gives another scene.
        num_views: photos taken; their order along the orbit is random.
        image_size: (height, width) in pixels, or one number for a square; the field of view is horizontal.
        device: where the scene is rendered and returned.
        path_kind: how cameras go through it where there is a room; in scenes of the data set, along arcs.

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
    numbers = SceneNumbers(*(part.to(device) for part in numbers))
    settings = settings_of(numbers)._replace(path_kind=torch.tensor([path_kind], device=device))
    batch = render_scenes(numbers, size, settings)
    return Scene(f"synthetic-{seed}", **{name: tensor[0] for name, tensor in batch._asdict().items()})


def draw_numbers(num_scenes: int, num_views: int, generator: torch.Generator) -> SceneNumbers:
    """Uniform numbers that define B scenes, on the generator's device."""
    shapes = (num_scenes, sum(_SCENE_FIELDS.values())), (num_scenes, num_views, sum(_VIEW_FIELDS.values()))
    device = generator.device
    return SceneNumbers(*(torch.rand(shape, generator=generator, device=device) for shape in shapes))


def settings_of(numbers: SceneNumbers) -> SceneSettings:
    """Those of the data set's scenes with these numbers."""
    path = _split(numbers.scene, _SCENE_FIELDS)["path"]
    arcs = torch.full_like(path[:, 0], CameraPath.ARC, dtype=torch.long)
    plain = torch.zeros_like(arcs, dtype=torch.bool)
    return SceneSettings(between(path[:, 3], 0.6, 6.0), arcs, plain, between(path[:, 7], 0.6, 1.3))


def render_scenes(
    numbers: SceneNumbers, image_size: tuple[int, int], settings: SceneSettings | None = None
) -> SceneBatch:
    """Photos, cameras and depth of the scenes that the numbers define; `settings` are for training."""
    of_scene, of_view = _split(numbers.scene, _SCENE_FIELDS), _split(numbers.view, _VIEW_FIELDS)
    settings = settings or settings_of(numbers)
    shapes = _build_shapes(of_scene, settings.furnished)
    kind = torch.where(shapes.has_room, settings.path_kind, CameraPath.ARC)
    cameras, intrinsics = place_cameras(
        of_scene["path"], of_view, image_size, settings.orbit_span, kind, settings.field_of_view
    )
    texture = build_texture(of_scene, of_view["gain"], shapes, settings.furnished)
    return photograph(shapes, texture, cameras, intrinsics)


def photograph(shapes: Shapes, texture: Texture, cameras: Cameras, intrinsics: Tensor) -> SceneBatch:
    """What cameras with these intrinsics [B, V, 3, 3] see of scenes."""
    depth, surface = cast_rays(shapes, cameras)
    images = shade(shapes, texture, cameras, depth, surface)
    to_camera = cameras.rotation.mT
    extrinsics = torch.cat([to_camera, -rotate(to_camera, cameras.position)[..., None]], -1)
    return SceneBatch(images, extrinsics, intrinsics, torch.where(depth.isfinite(), depth, 0.0))


def _build_shapes(of_scene: dict[str, Tensor], furnished: Tensor) -> Shapes:
    """A scene whose room clears all cameras of its path."""
    ones = torch.ones_like(of_scene["size"])
    radius, elevation = camera_radius(of_scene["path"], ones), camera_elevation(of_scene["path"], ones)
    return build_shapes(of_scene, radius, radius * elevation.sin(), furnished)


def _split(numbers: Tensor, fields: dict[str, int]) -> dict[str, Tensor]:
    return dict(zip(fields, numbers.split(list(fields.values()), -1), strict=True))
