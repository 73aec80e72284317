"""A command as several processes on this machine, as launchers start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

_RANK = """
import os, sys
os.environ |= {"RANK": sys.argv[1], "LOCAL_RANK": sys.argv[1]}
from hess_plugin.cli import main
sys.exit(main(sys.argv[2:]))
"""


def run_ranks(count: int, *arguments: str) -> list[str]:
    """What each process of `hess ARGUMENTS` printed; all must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environ = os.environ | {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(rank), *arguments],
            env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    printed = [rank.communicate(timeout=240) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * count, printed
    return [output for output, _ in printed]
