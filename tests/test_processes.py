"""Who shares a device, and how processes of one GPU speak with each other."""

from __future__ import annotations

import pytest
import torch

from hess_plugin import processes
from hess_plugin.processes import process_state, shares_device


@pytest.mark.parametrize(
    ("device", "local_processes", "gpus", "shared"),
    [
        ("cpu", None, 0, False),
        ("cpu", "2", 4, True),
        ("cuda:0", None, 1, False),
        ("cuda:1", "2", 2, False),
        ("cuda:0", "3", 2, True),
        ("cuda", "8", 1, True),
    ],
)
def test_shares_device(
    monkeypatch: pytest.MonkeyPatch, device: str, local_processes: str | None, gpus: int, shared: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local_processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local_processes)
    assert shares_device(device) is shared


@pytest.mark.parametrize(("launched", "backend"), [(True, "gloo"), (False, None)])
def test_launched_processes_speak_through_gloo(
    monkeypatch: pytest.MonkeyPatch, launched: bool, backend: str | None
) -> None:
    """NCCL, the default of GPUs, refuses two processes on one."""
    asked = {}
    monkeypatch.setattr(processes, "PartialState", lambda **more: asked.update(more))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "1")
    process_state(cpu=False)
    assert asked.get("backend") == backend
