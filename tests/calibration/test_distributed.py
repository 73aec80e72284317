"""Real processes: one, two and three of them, killed and resumed, write the same bytes."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from doubles import tiny_native_vggt

from hess_plugin.calibration.records import record_folders
from hess_plugin.cli import main
from hess_plugin.scores import CONFIG_FILE, SCORES_FILE

NUM_SCENES = 7  # neither two nor three processes get equal shares
LAUNCH = (
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --main_process_port 0 "
    "--mixed_precision no --dynamo_backend no -m hess_plugin.calibrate"
)
TIMEOUT = 240  # seconds; a few are enough, but other work may share the machine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_native_vggt().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Hashes of what one process writes."""
    out = tmp_path_factory.mktemp("alone")
    assert main(["calibrate", *options(model, out)]) == 0
    return hashes(out)


def options(model: Path, out: Path) -> list[str]:
    line = (
        f"--model {model} --dataset synthetic --out {out} --device cpu --num-scenes {NUM_SCENES} "
        "--num-views 3 --max-points 50 --min-fitness 0 --no-icp"
    )
    return line.split()


def hashes(out: Path) -> list[str]:
    return [hashlib.sha256((out / name).read_bytes()).hexdigest() for name in (SCORES_FILE, CONFIG_FILE)]


# What a launcher does, with one import for all: rank r writes to files r.out and r.err.
RANKS = """
import os, sys
from hess_plugin.calibration import command
from hess_plugin.cli import main

folder, count, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
children = []
for rank in range(count):
    children.append(os.fork())
    if children[-1] == 0:
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}/{rank}.{name}", os.O_CREAT | os.O_WRONLY), stream)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        sys.exit(main(["calibrate", *arguments]))
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def start(*arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_ranks(count: int, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environ = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    environ |= {"MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return start("-c", RANKS, str(folder), str(count), *arguments, **environ)


def test_two_processes_by_accelerate(model: Path, alone: list[str], tmp_path: Path) -> None:
    process = start(*LAUNCH.split(), *options(model, tmp_path))
    printed, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    assert printed.startswith("Processes: 2 (cpu)\n")
    assert printed.count(f"{NUM_SCENES} scenes x 3 views") == 1
    assert hashes(tmp_path) == alone


def test_three_processes(model: Path, alone: list[str], tmp_path: Path) -> None:
    ranks, said = start_ranks(3, tmp_path / "said", *options(model, tmp_path / "out")), tmp_path / "said"
    printed, errors = ranks.communicate(timeout=TIMEOUT)
    assert printed == "[0, 0, 0]\n", errors + "".join(path.read_text() for path in said.iterdir())
    assert (said / "0.out").read_text().startswith("Processes: 3 (cpu)\n")
    assert (said / "1.out").read_text() == (said / "2.out").read_text() == ""
    assert hashes(tmp_path / "out") == alone


def test_killed_with_two_processes_and_resumed_with_one(
    model: Path, alone: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ranks = start_ranks(2, tmp_path / "said", *options(model, out))
    deadline = time.monotonic() + TIMEOUT
    while not record_folders(out) and ranks.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    for each in [*psutil.Process(ranks.pid).children(), ranks]:
        each.kill()
    _, errors = ranks.communicate()
    assert not (out / CONFIG_FILE).exists(), "it was faster than the kill; give it more scenes"
    (folder,) = record_folders(out)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert 0 < len(kept) < NUM_SCENES, errors
    assert main(["calibrate", *options(model, out)]) == 2  # not without --resume
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert main(["calibrate", *options(model, out), "--resume"]) == 0
    assert hashes(out) == alone
    assert len(list(folder.glob("*.safetensors"))) == NUM_SCENES


def test_what_concerns_all_is_said_once(model: Path, tmp_path: Path) -> None:
    """And nobody waits for a rank that has given up."""
    (tmp_path / CONFIG_FILE).write_text("{}")
    ranks = start_ranks(2, tmp_path / "said", *options(model, tmp_path))
    printed, errors = ranks.communicate(timeout=TIMEOUT)
    assert printed == "[2, 0]\n", errors
    assert "holds scores already" in (tmp_path / "said" / "0.err").read_text()
    assert "holds scores already" not in (tmp_path / "said" / "1.err").read_text()
