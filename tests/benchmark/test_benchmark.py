"""`hess bench` on a tiny model: what is measured, written and drawn, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from hess_plugin.attention import HeSSAttention
from hess_plugin.benchmark import run, subject
from hess_plugin.benchmark.run import BenchRecord, BenchSettings, line, run_bench
from hess_plugin.benchmark.stopwatch import PARTS, Stopwatch
from hess_plugin.cli import main
from hess_plugin.errors import InputError
from hess_plugin.models import VggtConfig
from hess_plugin.patch import apply_hess

PARTS_OF_DENSE = set(PARTS.values())


@pytest.fixture
def config() -> VggtConfig:
    return VggtConfig(
        **dict(patch_size=8, embed_dim=32, depth=2, num_heads=2, patch_embed="conv", enable_track=False),
        **dict(camera_trunk_depth=1, camera_num_heads=2, dpt_features=8, dpt_out_channels=(4, 4, 8, 8)),
        dpt_layers=(0, 0, 1, 1),
    )


def settings(out: Path, **changes: object) -> BenchSettings:
    given = {"views": (3, 2), "dense_views": 2, "height": 64, "width": 64, "device": "cpu"} | changes
    return BenchSettings(out=out, **given)


def test_results_and_picture(config: VggtConfig, tmp_path: Path) -> None:
    records = run_bench(settings(tmp_path / "new" / "bench"), config)
    assert [(r.views, r.attention) for r in records] == [(2, "dense"), (2, "sparse"), (3, "sparse")]
    written = json.loads((tmp_path / "new" / "bench" / "bench.json").read_text())
    assert written["records"] == [vars(record) for record in records]
    assert (tmp_path / "new" / "bench" / "bench.png").read_bytes().startswith(b"\x89PNG")
    for record in records:
        assert record.tokens == record.views * (8 * 8 + 5)
        expected = PARTS_OF_DENSE | ({"prediction"} if record.attention == "sparse" else set())
        assert set(record.parts) == expected
        apart = sum(seconds for part, seconds in record.parts.items() if part != "prediction")
        assert record.seconds is not None
        assert 0 < record.parts.get("prediction", 0) + 1e-9 < record.parts["global attention"]
        assert apart <= record.seconds
        assert (record.density == 1) == (record.attention == "dense")
        assert all(word in line(record) for word in (f"{record.views} views", record.attention, "heads"))


def test_what_does_not_fit_is_a_row(
    config: VggtConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = run._timed_pass

    def limited(model: torch.nn.Module, images: torch.Tensor, sdpa: str) -> tuple:
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore")
        return timed(model, images, sdpa)

    monkeypatch.setattr(run, "_timed_pass", limited)
    last = run_bench(settings(tmp_path), config)[-1]
    assert (last.views, last.seconds, last.failed) == (3, None, "CUDA out of memory. Tried to allocate 9 GiB")
    assert line(last).endswith("Tried to allocate 9 GiB")


def test_the_stopwatch_leaves_nothing_behind(config: VggtConfig) -> None:
    model = subject.build_model(config, torch.device("cpu"))
    handle = apply_hess(model, subject.log_normal_scores(model), run._sparse_config(settings(Path("."))))
    with Stopwatch(torch.device("cpu")).watch(model):
        pass
    assert not any(module._forward_hooks for module in model.modules())
    sparse = [module for module in model.modules() if isinstance(module, HeSSAttention)]
    assert sparse
    pickle.dumps([module.processor for module in sparse])
    handle.remove()


def test_one_sparse_layer_warms_up(config: VggtConfig) -> None:
    model = subject.build_model(config, torch.device("cpu"))
    run._warm_up(model, 3, (8, 8), "default")  # dense: there is nothing to compile
    handle = apply_hess(model, subject.log_normal_scores(model), run._sparse_config(settings(Path("."))))
    run._warm_up(model, 3, (8, 8), "default")
    attended = [m.processor.num_blocks for m in model.modules() if isinstance(m, HeSSAttention)]
    assert attended == [2 * 3, 0]  # of 192 patches, in the first layer alone
    handle.remove()


def test_the_choice_of_sdpa_takes_float32_too() -> None:
    x = torch.ones(1, 1, 4, 8)
    for name in subject.SDPA:
        with subject.use_sdpa(name):
            assert torch.equal(torch.nn.functional.scaled_dot_product_attention(x, x, x), x)


def test_a_row_of_numbers() -> None:
    record = BenchRecord(50, 52050, "sparse", 1.25, {"heads": 0.5}, 8_000_000_000, density=0.25)
    row = "   50 views    52050 tokens sparse     1.25 s    8.0 GB  density 0.25  heads 0.50"
    assert line(record) == row


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "0"], "views must be 1 or more, got [0]"),
        (["--density", "2"], "density must be in (0, 1]"),
    ],
)
def test_bad_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 60}, "height and width must be multiples of the patch size 8, got 60 x 64"),
        ({"device": "foo"}, "foo"),
        ({"backend": "flex"}, "backend 'flex' is not available on cpu"),
    ],
)
def test_settings_that_cannot_work(
    config: VggtConfig, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_bench(settings(tmp_path / "out", **changes), config)
    assert not (tmp_path / "out").exists()
