#!/usr/bin/env bash
# Remakes everything in this folder; to be called from the root of the repository:
#     docs/results/remake.sh [PROCESSES [OPTIONS]]
# PROCESSES may be more than there are GPUs: passes of the small model leave a GPU waiting for launches.
# OPTIONS go to all runs of the model, such as --model FOLDER; remove paper/ and timing/ for other weights.
set -euo pipefail
processes=${1:-1}
shift $(($# > 0))
results=docs/results
paper=(--preset paper --dataset synthetic --other-hess "./$results/office_scores")
hess() { "${PYTHON:-python}" -m hess_plugin "$@"; }

if ((processes > 1)); then
    "${PYTHON:-python}" -m accelerate.commands.launch --multi_gpu --num_processes "$processes" \
        --num_machines 1 --mixed_precision no --dynamo_backend no \
        -m hess_plugin sweep "${paper[@]}" "$@" --out "$results/paper"
else
    hess sweep "${paper[@]}" "$@" --out "$results/paper"
fi
hess sweep --preset timing --dataset synthetic "$@" --out "$results/timing"

# The scenes of the page: the first two that the seed draws.
setting=sparse_ratio=0.8,cdf_threshold=0.4
hess predict --dataset synthetic "$@" --num-scenes 2 --out runs/results/dense
hess predict --dataset synthetic "$@" --num-scenes 2 --out runs/results/uniform --sparse "$setting,allocation=uniform"
hess predict --dataset synthetic "$@" --num-scenes 2 --out runs/results/hess --sparse "$setting"

hess report "$results/paper" "$results/timing" runs/results/dense runs/results/uniform runs/results/hess \
    --out "$results"
