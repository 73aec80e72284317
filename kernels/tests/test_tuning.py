"""Which launch options are used where."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from hess_attention import tuning
from hess_attention.ops import HEAD_DIMS
from hess_attention.tuning import Tile, choose_tile, default_tile

CUDA = torch.device("cuda")
KERNELS = ("forward", "forward_fp8", "backward_queries", "backward_keys")
CONFIGS = sorted(tuning.CONFIGS.glob("*.json"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """A function that makes PyTorch believe in a GPU."""

    def pretend(name: str, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    tuning.gpu_table.cache_clear()
    yield pretend
    tuning.gpu_table.cache_clear()


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA H200"])
def test_table_of_the_gpu(name: str, gpu, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    gpu(name, (9, 0))
    monkeypatch.setattr(tuning, "triton_version", lambda: "3.6.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tile = choose_tile("forward", CUDA, torch.bfloat16, 64, 128, 64)
    assert tile == Tile(num_warps=4, num_stages=3, maxnreg=160, tma=True, frozen=True)
    # In float16 probabilities overflow sooner.
    assert choose_tile("forward", CUDA, torch.float16, 64, 128, 64) == tile._replace(frozen=False)
    # Tables are for 16-bit types at the standard blocks.
    for dtype, q_block, kv_block in ((torch.float32, 128, 64), (torch.float16, 64, 64)):
        found = choose_tile("forward", CUDA, dtype, 64, q_block, kv_block)
        assert found == default_tile("forward", (9, 0), dtype, 64, q_block)
    # And for one compiler: another may spill registers.
    monkeypatch.setattr(tuning, "triton_version", lambda: "3.60.0")
    found = choose_tile("forward", CUDA, torch.bfloat16, 64, 128, 64)
    assert found == default_tile("forward", (9, 0), torch.bfloat16, 64, 128)


def test_other_gpus_get_a_default_and_one_warning(gpu) -> None:  # type: ignore[no-untyped-def]
    gpu("NVIDIA A100-SXM4-80GB", (8, 0))
    call = ("forward", CUDA, torch.bfloat16, 64, 128, 64)
    with pytest.warns(UserWarning, match="no tuned launch options for 'NVIDIA A100-SXM4-80GB'"):
        tile = choose_tile(*call)
    assert not tile.tma
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_tile(*call) == tile


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("q_block", [16, 32, 64, 128])
def test_defaults_can_be_launched(kernel: str, dtype: torch.dtype, q_block: int) -> None:
    for capability in ((8, 0), (9, 0), (12, 0)):
        for dim in HEAD_DIMS:
            tile = default_tile(kernel, capability, dtype, dim, q_block)
            assert q_block % tile.parts == 0
            assert min(q_block // tile.parts, tile.step) >= 16  # the smallest matrix product
            assert tile.tma == (kernel.startswith("forward") and capability >= (9, 0))


def test_dense_below_tokens(gpu, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(tuning, "HAS_TRITON", True)
    gpu("NVIDIA H100 80GB HBM3", (9, 0))
    table = json.loads((tuning.CONFIGS / "nvidia_h100.json").read_text(encoding="utf-8"))
    assert tuning.dense_below_tokens(CUDA) == table["dense_below_tokens"]
    assert tuning.dense_below_tokens(torch.device("cpu")) == 0
    gpu("NVIDIA A100-SXM4-80GB", (8, 0))
    with pytest.warns(UserWarning, match="no tuned launch options"):
        assert 0 < tuning.dense_below_tokens(CUDA) < 10**6
    # Where the kernels cannot run, sparse attention never catches up.
    gpu("Tesla V100-SXM2-32GB", (7, 0))
    assert tuning.dense_below_tokens(CUDA) > 10**12
    gpu("NVIDIA H100 80GB HBM3", (9, 0))
    monkeypatch.setattr(tuning, "HAS_TRITON", False)
    assert tuning.dense_below_tokens(CUDA) > 10**12


def test_launch_options() -> None:
    assert Tile(4, 3).launch_options() == {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}
    assert Tile(4, 3, maxnreg=96).launch_options()["maxnreg"] == 96


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_tables_are_readable(path: Path) -> None:
    table = json.loads(path.read_text(encoding="utf-8"))
    assert set(table) == {"gpu", "triton", "notes", "dense_below_tokens", "tiles"}
    assert set(table["notes"]) == {"dense_below_tokens", *table["tiles"]}
    assert table["dense_below_tokens"] > 0
    for kernel, entries in table["tiles"].items():
        assert kernel in KERNELS
        assert {int(dim) for dim in entries} <= set(HEAD_DIMS)
        for entry in entries.values():
            assert Tile(**entry).num_warps in (4, 8)
