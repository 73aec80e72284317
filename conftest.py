"""Test environment: huggingface_hub talks to a server in this process, never to the network."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "tests"))  # helper modules, also for tests in sub-folders
from hub_server import HubServer

# Endpoint, cache and token are read when huggingface_hub is imported: later changes would not arrive.
assert not {"huggingface_hub", "transformers"} & sys.modules.keys(), (
    "imported before the test environment is set"
)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which transformers does
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # workers share the cores, and what they start does too
    _THREADS = max(1, torch.get_num_threads() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    torch.set_num_threads(_THREADS)
    os.environ["OMP_NUM_THREADS"] = str(_THREADS)
_HOME = tempfile.TemporaryDirectory(prefix="hf-home-")
_SERVER = HubServer().start()
os.environ.update(_SERVER.environ(hf_home=_HOME.name))
for _name in (
    "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_XET_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"
):  # fmt: skip
    os.environ.pop(_name, None)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """The local server without repositories, and an empty cache: a filled cache hides server errors."""
    import huggingface_hub

    def clear() -> None:
        _SERVER.reset()
        shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE, ignore_errors=True)

    clear()
    yield _SERVER
    clear()
