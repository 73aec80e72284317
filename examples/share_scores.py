"""From photos with ground truth to `hess="co3d"`: calibrate with several processes, push, load elsewhere.

    python examples/share_scores.py --model you/VGGT-1B --root /data/co3dv2 --repo you/VGGT-1B --processes 8

The checkpoint is one of VGGT, for the native class. Each step is a command that you could type yourself; it
is printed before it runs:

1. `accelerate launch` splits the calibration scenes over the processes. The scores are the same, bit for bit,
   for any number of them; `--resume` goes on with a run that was interrupted.
2. `hess push` commits them to the repository that holds the weights, as `hess/<dataset>/`.
3. A fresh Python process knows nothing but the repository's name and the alias.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_machines 1 --main_process_port 0 "
    "--mixed_precision no --dynamo_backend no"  # --multi_gpu starts as many processes without a GPU, too
)
LOAD = """
import sys, torch
from hess_plugin import VggtModel

repo, alias = sys.argv[1:]
model = VggtModel.from_pretrained(repo, hess=alias, dtype=torch.float32).eval()
size = model.config.img_size
with torch.inference_mode():
    model(torch.rand(1, 4, 3, size, size))
print(f"{repo} with hess={alias!r}: {model.hess.scores}, sparsity {model.hess.stats.sparsity.mean():.2f}")
"""


def main() -> None:
    """Run the three steps; the first that fails ends the program with its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or repository of the checkpoint to calibrate")
    parser.add_argument("--repo", required=True, help="repository that holds its weights and gets the scores")
    parser.add_argument("--dataset", default="co3d", help="also the alias of the scores (default: co3d)")
    parser.add_argument("--root", required=True, help="folder of the dataset")
    parser.add_argument("--processes", type=int, default=1, help="one per GPU (default: 1)")
    parser.add_argument("--out", type=Path, default=Path("scores"), help="folder for the scores")
    options, more = parser.parse_known_args()  # what is left goes to the calibration, such as --num-scenes 5

    place = ["--dataset", options.dataset, "--root", options.root, "--out", str(options.out)]
    launch = [*LAUNCH.split(), "--num_processes", str(options.processes)]
    python(*launch, "-m", "hess_plugin.calibrate", "--model", options.model, *place, *more)
    python("-m", "hess_plugin", "push", str(options.out), options.repo, "--alias", options.dataset)
    python("-c", LOAD, options.repo, options.dataset)


def python(*arguments: str) -> None:
    """Run Python in a process of its own, and stop here if it fails."""
    shown = " ".join("..." if "\n" in each else shlex.quote(each) for each in arguments)
    print(f"\n$ python {shown}", flush=True)
    done = subprocess.run([sys.executable, *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
