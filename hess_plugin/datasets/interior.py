"""What stands in a procedural scene and how it is painted: uniform random numbers to shapes and textures.

World: +z is up. The stage at z = 0 is a round or a rectangular table top or the bare floor. Objects lie on
it, seats stand around it, carpets lie below, and cupboards and panels stand at or hang on the walls. Three in
four scenes have a room around all, cameras too; in training, some of these are furnished from wall to wall.
Colours are mostly pale, as in photos, and patterns of any fineness and contrast, from plain paint over wood
grain to chequers: a model must not hang on any of them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry.cameras import quaternion_to_rotation
from .raycast import ROOM_SIDES, Shapes, Texture

OBJECTS, SEATS, PANELS = 12, 4, 4
_SEAT_PARTS = 4  # the seat itself, its back, two legs
_ELLIPSOIDS = 1 + OBJECTS // 3  # with the disc; the other objects are boxes
_BOXES = OBJECTS - OBJECTS // 3 + 3 + SEATS * _SEAT_PARTS + PANELS + 1  # with a table, its two legs, the room
_PAINTS = _ELLIPSOIDS + _BOXES - 1 + ROOM_SIDES
_WAVES = 5
MATERIALS = 6  # of a furnished room

# How many numbers each property takes per scene. The order decides what a seed shows.
FIELDS = {
    **{"stage": 5, "room": 6, "size": 1, "place": OBJECTS * 3, "half": OBJECTS * 3, "turn": OBJECTS * 4},
    **{"seats": SEATS * 7, "panels": PANELS * 6},
    **{"color": _PAINTS * 6, "pattern": _PAINTS * 8, "waves": _PAINTS * _WAVES * 6},
    **{"light": 3, "background": 3, "saturation": 1, "gain": 5},
}


def build_shapes(drawn: dict[str, Tensor], reach: Tensor, top: Tensor, furnished: Tensor) -> Shapes:
    """The scene's surfaces: disc, objects, table, its legs, seats, panels, room.

    Args:
        drawn: numbers [B, n] in [0, 1), by the names of `FIELDS`.
        reach, top: [B, 1], how far the cameras may get from the z axis, and how high.
        furnished: [B] bool, whether half of a room's objects and seats stand, larger, all over its floor,
            which has a second flooring; see also `build_texture`.
    """
    kind, long, wide, disc, drop = drawn["stage"][..., None].unbind(1)  # [B, 1] each
    is_round, is_table = kind < 0.25, (kind > 0.25) & (kind < 0.65)
    floor = torch.where(is_round | is_table, -between(drop, 0.5, 1.6), 0.0)
    has_room = drawn["room"][:, 0] < 0.75
    furnished = (furnished & has_room)[:, None]
    long, radius = between(long, 0.7, 2.6), between(disc, 0.7, 2.8)
    wide, none = long * between(wide, 0.35, 1.0), torch.zeros_like(floor)
    extent = torch.cat([torch.where(is_round, radius, length) for length in (long, wide)], -1)
    leg = torch.linspace(-0.7, 0.7, 2, device=floor.device) * extent[:, :1]
    room = _place_room(drawn["room"], reach, top, floor)
    objects, rotation = _place_objects(drawn, extent, floor, room, furnished)
    # What is no table top is a carpet.
    at_disc, disc_half = torch.where(is_round, -0.04, floor), torch.where(is_round, 0.04, 0.004)
    at_table, table_half = torch.where(is_table, -0.04, floor), torch.where(is_table, 0.04, 0.008)
    blocks = [
        _blocks(none, none, at_disc, radius, radius, disc_half),
        objects,
        _blocks(none, none, at_table, long, wide, table_half),
        _blocks(leg, none, floor / 2 - 0.08, none + 0.05, 0.6 * extent[:, 1:], (-floor / 2).clamp(min=1e-3)),
        _place_seats(drawn["seats"], extent, floor, room, furnished),
        _place_panels(drawn["panels"], room, furnished),
        room,
    ]
    centre, half = torch.cat(blocks, 1).split(3, -1)
    turns = torch.eye(3, device=floor.device).repeat(*centre.shape[:2], 1, 1)
    turns[:, 1 : 1 + OBJECTS] = rotation
    return Shapes(centre, turns.mT / half[..., None], _ELLIPSOIDS, has_room)


def _blocks(*parts: Tensor | float) -> Tensor:
    """Blocks [B, n, 6] of coordinates of centres and half extents: numbers, [B, 1] or [B, n]."""
    like = next(part for part in parts if isinstance(part, Tensor))
    tensors = [part if isinstance(part, Tensor) else torch.full_like(like[:, :1], part) for part in parts]
    return torch.stack(torch.broadcast_tensors(*tensors), -1)


def _place_objects(
    drawn: dict[str, Tensor], extent: Tensor, floor: Tensor, room: Tensor, furnished: Tensor
) -> tuple[Tensor, Tensor]:
    """Blocks on the stage or floor, and their rotations [B, n, 3, 3]; most stand upright and square to it."""
    half, place = (drawn[name].unflatten(1, (OBJECTS, 3)) for name in ("half", "place"))
    turn, upright = drawn["turn"].unflatten(1, (OBJECTS, 4)).split([3, 1], -1)
    scattered = _every_other(furnished, OBJECTS)
    bulk = torch.where(scattered, 2.4, extent.mean(1, keepdim=True).clamp(max=1.6))
    size = between(drawn["size"], 0.3, 1.0) * bulk
    half = between(half**2, 0.06, 0.4) * size[..., None]
    yaw = math.pi / 2 * (2 * turn[..., :1] - 1) ** 3  # half of a turn by up to π, mostly little
    zeros = torch.zeros_like(yaw)
    standing = quaternion_to_rotation(torch.cat([zeros, zeros, yaw.sin(), yaw.cos()], -1))
    rotation = torch.where(upright[..., None] < 0.7, standing, _random_rotation(turn))
    radius, angle, lift = place.unbind(-1)
    radius, away = radius.sqrt()[:, None], _circle(angle)
    on_stage = extent[:, :, None] * 0.8 * radius * away  # in this order: what a seed shows hangs on rounding
    x, y = torch.where(scattered[:, None], _on_floor(room, radius * away), on_stage).unbind(1)
    reach = (rotation[..., 2, :] * half).norm(dim=-1)  # of an ellipsoid, above its centre
    z = 0.95 * reach + 0.5 * lift**4 + torch.where(scattered, floor, 0.0)
    return torch.cat([torch.stack([x, y, z], -1), half], -1), rotation


def _place_seats(numbers: Tensor, extent: Tensor, floor: Tensor, room: Tensor, furnished: Tensor) -> Tensor:
    """Blocks around the stage: chairs with backs away from it, and stools that are solid to the floor.

    In furnished rooms every other one stands anywhere and is as large as a table, desk or chest.
    """
    scattered = _every_other(furnished, SEATS)
    angle, gap, long, wide, high, back, solid = numbers.unflatten(1, (SEATS, 7)).unbind(-1)
    away = _circle(angle)
    around = (extent[:, :, None] + between(gap, 0.0, 0.6)[:, None]) * away
    anywhere = _on_floor(room, gap.sqrt()[:, None] * away)
    x, y = torch.where(scattered[:, None], anywhere, around).unbind(1)
    size = torch.where(scattered, 2.0, 1.0)
    long, wide = (size * between(side, 0.15, 0.35) for side in (long, wide))
    high = size * between(high, 0.15, 0.6)
    thick = torch.where(solid < 0.3, high / 2, 0.03)
    side_x, side_y = away.sign().unbind(1)
    on_x, rise = away[:, 0].abs() > away[:, 1].abs(), 0.6 * high * back
    at_x, at_y = torch.where(on_x, side_x * long, 0.0), torch.where(on_x, 0.0, side_y * wide)
    half_x, half_y = torch.where(on_x, 0.02, long), torch.where(on_x, wide, 0.02)
    parts = [
        _blocks(x, y, floor + high - thick, long, wide, thick),
        _blocks(x + at_x, y + at_y, floor + high + rise, half_x, half_y, rise.clamp(min=1e-3)),
        *(_blocks(x + s * long, y + s * wide, floor + high / 2, 0.02, 0.02, high / 2) for s in (-0.9, 0.9)),
    ]
    return torch.cat(parts, 1)


def _every_other(furnished: Tensor, count: int) -> Tensor:
    """Which [B, n] of the things in furnished [B, 1] rooms leave the stage."""
    return furnished & (torch.arange(count, device=furnished.device) % 2 == 0)


def _on_floor(room: Tensor, place: Tensor) -> Tensor:
    """Horizontal positions [B, 2, n] in rooms [B, 1, 6] of places in a circle of radius 1."""
    return room[:, 0, :2, None] + 0.95 * room[:, 0, 3:5, None] * place


def _place_room(numbers: Tensor, reach: Tensor, top: Tensor, floor: Tensor) -> Tensor:
    _, west, south, east, north, ceiling = (4 * numbers**2)[..., None].unbind(1)
    west, south, east, north = (reach + 0.2 + margin for margin in (west, south, east, north))
    ceiling = top + 0.3 + ceiling / 2
    return _blocks(
        *((east - west) / 2, (north - south) / 2, (ceiling + floor) / 2),
        *((east + west) / 2, (north + south) / 2, (ceiling - floor) / 2),
    )


def _place_panels(numbers: Tensor, room: Tensor, furnished: Tensor) -> Tensor:
    """Blocks that touch a wall; half of them stand on the floor.

    In furnished rooms the first is a second flooring.
    """
    side, along, thick, wide, high, lift = numbers.unflatten(1, (PANELS, 6)).unbind(-1)
    x, y, z, half_x, half_y, half_z = room.unbind(-1)
    on_x, sign = side < 0.5, torch.where((4 * side) % 2 < 1, -1.0, 1.0)
    floorings = _lay_floorings(on_x, sign, between(thick, 0.05, 0.7), room)
    thick, wide = between(thick**2, 0.02, 0.5), between(wide, 0.2, 1.8)
    high = between(high, 0.1, 0.9) * half_z
    lift = (2 * lift - 1).clamp(min=0) * 2 * (half_z - high)
    along = 2 * along - 1
    at_x = torch.where(on_x, sign * (half_x - thick), along * half_x)
    at_y = torch.where(on_x, along * half_y, sign * (half_y - thick))
    halves = torch.where(on_x, thick, wide), torch.where(on_x, wide, thick), high
    panels = _blocks(x + at_x, y + at_y, z - half_z + high + lift, *halves)
    lies = furnished & (torch.arange(PANELS, device=numbers.device) == 0)
    return torch.where(lies[..., None], floorings, panels)


def _lay_floorings(on_x: Tensor, sign: Tensor, deep: Tensor, room: Tensor) -> Tensor:
    """Blocks that hardly rise from the floor, along all of one wall; `deep` is a share of the room."""
    x, y, z, half_x, half_y, half_z = room.unbind(-1)
    long = torch.where(on_x, deep, 1.0) * half_x
    wide = torch.where(on_x, 1.0, deep) * half_y
    at_x, at_y = sign * (half_x - long), sign * (half_y - wide)
    return _blocks(x + at_x, y + at_y, z - half_z + 0.001, long, wide, 0.001)


def build_texture(
    drawn: dict[str, Tensor], gain_of_views: Tensor, shapes: Shapes, furnished: Tensor
) -> Texture:
    """Paint, light and exposure; `gain_of_views` are numbers [B, V, 4].

    In furnished [B] rooms half of the paints are plain, as carpets and cupboards are, and all are paints of
    a few of the room's things: real rooms have chairs alike, and tables of the floor's wood.
    """
    furnished = (furnished & shapes.has_room)[:, None]
    of_paint = [drawn[name].unflatten(1, (_PAINTS, -1)) for name in ("color", "pattern", "waves")]
    material = (MATERIALS * of_paint[1][..., -1]).long()
    material = torch.where(furnished, material, torch.arange(_PAINTS, device=material.device))[..., None]
    color, pattern, waves = (n.gather(1, material.expand_as(n)) for n in of_paint)
    first, second = (2 * color - 1).split(3, -1)
    bright, other, saturation, mixed, contrast, sharpness, fineness, grain = pattern.unbind(-1)
    contrast = torch.where(furnished, (2 * contrast - 1).clamp(min=0), contrast)
    saturation = (0.9 * saturation * drawn["saturation"] ** 0.5)[..., None]
    bright = between(bright, 0.03, 1.0)
    other = torch.lerp(bright, between(other, 0.03, 1.0), contrast**0.5)  # some much alike
    tint = first, torch.lerp(first, second, (mixed * contrast)[..., None])
    color, end = (
        light[..., None] * (1 + saturation * hue) for light, hue in zip((bright, other), tint, strict=True)
    )
    scale = shapes.to_unit.norm(dim=-1)  # 1 / half extents
    scale = torch.cat([scale, scale[:, -1:].expand(-1, ROOM_SIDES - 1, -1)], 1)
    grain = (3 * grain)[..., None]
    stripes = (grain.floor() == torch.arange(3, device=grain.device)) & (grain % 1 < 0.4)
    scale = torch.where(stripes, 0.1, 1.0) / scale  # waves are stretched along the grain
    waves = waves.unflatten(-1, (_WAVES, 6))
    light_around, light_height, ambient = drawn["light"].unbind(-1)
    exposure, balance, gamma = drawn["gain"].split([1, 3, 1], -1)
    own_exposure, own_balance = gain_of_views.split([1, 3], -1)
    gain = _power(exposure, 0.75, 1.5) * between(balance, 0.8, 1.2)
    own_gain = _power(own_exposure, 0.85, 1.18) * between(own_balance, 0.95, 1.05)
    return Texture(
        color=color,
        change=end - color,
        wave=_build_waves(waves, fineness, _power(sharpness, 0.3, 8.0), scale),
        light=unit_vector(light_around, between(light_height, 0.2, 0.95)),
        ambient=between(ambient, 0.35, 0.75)[:, None],
        background=drawn["background"],
        gain=gain[:, None] * own_gain,
        gamma=_power(gamma, 0.6, 1.6),
    )


def _build_waves(numbers: Tensor, fineness: Tensor, sharpness: Tensor, scale: Tensor) -> Tensor:
    """Each wave is about twice as fine as the one before; the first has 1 to 16 radians per world unit."""
    around, height, stretch, phase, strength, bend = numbers.unbind(-1)
    octave = 1.8 ** torch.arange(_WAVES, device=numbers.device)
    frequency = (_power(fineness, 1.0, 16.0)[..., None] * octave * _power(stretch, 0.7, 1.4)).clamp(max=50)
    vector = unit_vector(around, 2 * height - 1) * frequency[..., None] * scale[..., None, :]
    amplitude = sharpness[..., None] * F.normalize(strength / octave**0.25, dim=-1)
    rest = torch.stack([2 * math.pi * phase, amplitude, 2.5 * bend**2], -1)
    return torch.cat([vector, rest], -1)


def _random_rotation(numbers: Tensor) -> Tensor:
    """Uniform rotations [..., 3, 3] of uniform numbers [..., 3] (Shoemake's quaternions)."""
    size, first, second = numbers[..., 0], 2 * math.pi * numbers[..., 1], 2 * math.pi * numbers[..., 2]
    small, large = (1 - size).sqrt(), size.sqrt()
    parts = [small * first.sin(), small * first.cos(), large * second.sin(), large * second.cos()]
    return quaternion_to_rotation(torch.stack(parts, -1))


def unit_vector(turns: Tensor, height: Tensor) -> Tensor:
    """Unit vectors [..., 3] at an azimuth in turns and a z coordinate."""
    flat, angle = (1 - height * height).sqrt(), 2 * math.pi * turns
    return torch.stack([flat * angle.cos(), flat * angle.sin(), height], -1)


def _circle(turns: Tensor) -> Tensor:
    """Points [B, 2, n] of the unit circle at azimuths [B, n] in turns."""
    return torch.stack([(2 * math.pi * turns).cos(), (2 * math.pi * turns).sin()], 1)


def between(numbers: Tensor, low: float, high: float) -> Tensor:
    """From [0, 1) to [low, high)."""
    return low + (high - low) * numbers


def _power(numbers: Tensor, low: float, high: float) -> Tensor:
    """From [0, 1) to [low, high), evenly in the logarithm."""
    return low * (high / low) ** numbers
