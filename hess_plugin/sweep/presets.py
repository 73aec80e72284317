"""What a sweep measures: methods by level, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import InputError
from .methods import BASELINE, METHODS, Level, Method, density_level

# Tables S1 and S2 of the paper: sparse ratio ρ and CDF threshold τ.
PAPER_PAIRS = (
    (0.1, 0.97), (0.3, 0.97), (0.5, 0.97), (0.4, 0.95), (0.6, 0.93), (0.5, 0.90), (0.5, 0.88), (0.5, 0.85),
    (0.5, 0.80), (0.5, 0.75), (0.5, 0.70), (0.7, 0.70), (0.6, 0.60), (0.6, 0.40), (0.8, 0.50), (0.8, 0.40),
)  # fmt: skip
DENSITIES = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
_PAIRS = tuple(Level(*pair) for pair in PAPER_PAIRS)
_GRID = tuple(density_level(density) for density in DENSITIES)
_SPREAD = tuple(Level(*pair) for pair in ((0.5, 0.90), (0.5, 0.70), (0.6, 0.60), (0.6, 0.40), (0.8, 0.40)))
_ABLATED = (Level(0.6, 0.4), Level(0.8, 0.4))  # the second is that of Table 1
TABLE_2_LEVELS = (Level(0.5, 0.9), Level(0.8, 0.4))
_MAIN = (BASELINE, "hess", "reverse", "shuffled")
_UNIFORM = ("uniform-cdf", "uniform-keys", "uniform-public")
_BASELINES = ("michel", "kwon", "merging")
_TABLE_1 = ("key", "value", "linear", "softmax", "log")
_SIZES = ("scenes-1", "scenes-5", "scenes-10", "scenes-20", "scenes-40")


@dataclass(frozen=True)
class Setting:
    """One method at one level; the dense model has none."""

    method: Method
    level: Level | None

    @property
    def key(self) -> str:
        """Its name in the records."""
        return self.method.name if self.level is None else f"{self.method.name} @ {self.level.name}"


@dataclass(frozen=True)
class Preset:
    """Settings, and how many scenes and views they are measured on unless asked otherwise."""

    parts: tuple[tuple[tuple[Level, ...], tuple[str, ...]], ...]  # levels, and methods measured at each
    num_scenes: int
    num_views: int | None = None  # None: the protocol's

    def settings(self) -> list[Setting]:
        """Dense first; of each level the baseline before all others, which need its density."""
        methods: dict[Level, list[str]] = {}
        for levels, names in self.parts:
            for level in levels:
                wanted = methods.setdefault(level, [BASELINE])
                wanted += [name for name in names if name not in wanted]
        listed = [Setting(METHODS[name], level) for level, names in methods.items() for name in names]
        return [Setting(METHODS["dense"], None), *listed]


PRESETS = {
    "paper": Preset(
        (
            (_PAIRS, (BASELINE, "hess")),
            (_GRID, (*_MAIN, *_BASELINES)),
            (_SPREAD, (*_MAIN, *_UNIFORM, "lambda-0", "lambda-0.5", "lambda-1", "no-capping")),
            (_ABLATED, (*_TABLE_1, *_SIZES, "swapped")),
        ),
        num_scenes=96,
    ),
    # A process to itself on a device: of processes that share one, the seconds are not kept.
    "timing": Preset(
        (
            (TABLE_2_LEVELS, (BASELINE, "hess")),
            ((density_level(0.25), density_level(0.5)), ("hess", *_BASELINES)),
        ),
        num_scenes=12,
    ),
    "density": Preset(((_GRID, _MAIN),), num_scenes=24),
    "small": Preset(
        (
            ((density_level(0.25), density_level(0.5)), (*_MAIN, *_BASELINES)),
            (
                (Level(0.8, 0.4),),
                (BASELINE, "hess", "uniform-public", "lambda-0", "no-capping", "key", "scenes-5"),
            ),
        ),
        num_scenes=2,
        num_views=4,
    ),
}


def preset_named(name: str) -> Preset:
    """The preset; InputError lists those that there are."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}.")
    return PRESETS[name]


def chosen_settings(preset: Preset, methods: Sequence[str] | None) -> Iterator[Setting]:
    """The settings of a preset; with methods named only these, and what they are compared with.

    Raises:
        InputError: a method that there is not.
    """
    unknown = [name for name in methods or () if name not in METHODS]
    if unknown:
        raise InputError(f"unknown method {unknown[0]!r}; known: {', '.join(METHODS)}.")
    for setting in preset.settings():
        if methods is None or setting.method.name in (*methods, "dense", BASELINE):
            yield setting
