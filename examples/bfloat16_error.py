"""What half precision costs: outputs with the residual stream in float32 and in bfloat16, beside float32.

    python examples/bfloat16_error.py --scenes 12             # the small trained model
    python examples/bfloat16_error.py --random-1b --views 8   # VGGT-1B with random weights, on a GPU

The heads are in float32 throughout. Errors are |output - float32| / |float32|, medians over scenes; AUC@30 is
against the ground truth of the synthetic scenes, where the weights are trained.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from hess_plugin.benchmark.subject import body_in_bfloat16
from hess_plugin.datasets import synthetic_scene
from hess_plugin.demo import DemoSettings, load_model
from hess_plugin.evaluation.pose import auc, pair_errors
from hess_plugin.models import VggtConfig, VggtModel, VggtOutput
from hess_plugin.tables import format_table

FIRST_SEED = 2_000_000  # neither trained on nor calibrated with
OUTPUTS = ("pose_enc", "depth", "world_points", "depth_conf", "world_points_conf")
MODES = {
    "float32": "float32",
    "rounded": "weights rounded to bfloat16",
    "autocast": "bfloat16, residual stream in float32 (autocast)",
    "bfloat16": "bfloat16, residual stream and kept layers too",
}


def inputs(options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Images, and true cameras where the weights are trained."""
    for seed in range(FIRST_SEED, FIRST_SEED + options.scenes):
        if options.random_1b:
            generator = torch.Generator().manual_seed(seed)
            yield torch.rand(options.views, 3, 392, 518, generator=generator), None
        else:
            scene = synthetic_scene(seed, options.views)
            yield scene.images, scene.extrinsics


@torch.inference_mode()
def outputs_of(model: VggtModel, rounded: VggtModel, images: Tensor) -> Iterator[VggtOutput]:
    """Of each of `MODES`; `rounded` has the same weights in bfloat16."""
    yield model(images)
    exact = copy.deepcopy(rounded).float()
    yield exact(images)
    del exact
    with torch.autocast(images.device.type, torch.bfloat16):
        yield model(images)
    yield rounded(images)


def measured(found: VggtOutput, exact: VggtOutput, cameras: Tensor | None) -> list[float]:
    """Relative error of each of `OUTPUTS`, then AUC@30 in percent, NaN without true cameras."""
    errors = [float((found[name] - exact[name]).norm() / exact[name].norm()) for name in OUTPUTS]
    if cameras is None:
        return [*errors, float("nan")]
    assert found.extrinsics is not None
    return [*errors, 100 * auc(pair_errors(found.extrinsics[0].cpu(), cameras).pose, 30)]


def table(model: VggtModel, options: argparse.Namespace) -> str:
    """One row per mode."""
    rounded = body_in_bfloat16(copy.deepcopy(model))
    rows: dict[str, list[list[float]]] = {mode: [] for mode in MODES}
    for images, cameras in tqdm(inputs(options), total=options.scenes, unit="scene", disable=None):
        exact = None
        for mode, found in zip(MODES, outputs_of(model, rounded, images.to(model.device)), strict=True):
            exact = found if exact is None else exact
            rows[mode].append(measured(found, exact, cameras))
    lines = []
    for mode, values in rows.items():
        *errors, _ = torch.tensor(values).median(0).values.tolist()
        mean = torch.tensor(values)[:, -1].mean()
        lines.append([MODES[mode], *(f"{error:.2%}" for error in errors), f"{mean:.1f}"])
    return format_table(["", *OUTPUTS, "AUC@30"], lines)


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--views", type=int, default=16)
    parser.add_argument(
        "--random-1b", action="store_true", help="VGGT-1B with random weights, layer scales 1"
    )
    options = parser.parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = False  # float32 is what all is compared with
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.random_1b:
        with device:
            torch.manual_seed(0)
            model = VggtModel(VggtConfig(enable_track=False, layer_scale_init=1.0)).eval()
    else:
        model = load_model(DemoSettings())[0].to(device)
    print(f"{device}, torch {torch.__version__}, {options.scenes} scenes of {options.views} views")
    print(table(model, options))


if __name__ == "__main__":
    main()
