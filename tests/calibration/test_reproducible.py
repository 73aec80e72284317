"""Settings for equal bits: there while it matters, as before afterwards."""

from __future__ import annotations

import os

import pytest
import torch

from hess_plugin.calibration.reproducible import reproducible


def settings() -> dict[str, object]:
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "tf32": (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32),
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


@pytest.fixture
def unusual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that nobody has by default."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.set_num_threads(threads + 1)
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("unusual")
@pytest.mark.parametrize("workspace", [None, ":16:8"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_come_back_also_after_an_error(
    device: str, workspace: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if workspace:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    before = settings()
    with pytest.raises(KeyError), reproducible(torch.device(device)):
        raise KeyError(settings())
    assert settings() == before


@pytest.mark.usefixtures("unusual")
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is set is checked, so no GPU is needed."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with reproducible(torch.device("cuda", 0)):
        assert settings() == {
            "threads": 1,
            "deterministic": True,
            "warn only": False,
            "precision": "highest",
            "cudnn": (True, False),
            "tf32": (False, False),
            "workspace": ":4096:8",
        }


def test_a_cpu_keeps_its_algorithms() -> None:
    with reproducible(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()
