"""The benchmarks without a GPU: lists, command lines, the search, and what is written."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hess_attention.tuning import Tile
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import benchmark
import block_lists
import tune


class TestLists:
    @pytest.mark.parametrize("budgets", ["even", "log-normal"])
    @pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75, 0.9])
    def test_mean_is_what_was_asked_for(self, budgets: str, sparsity: float) -> None:
        counts = block_lists.head_counts(16, 512, sparsity, budgets)
        assert counts.float().mean() == pytest.approx(512 * (1 - sparsity), abs=0.5)
        assert 1 <= counts.min() <= counts.max() <= 512

    def test_log_normal_budgets_are_capped_and_uneven(self) -> None:
        counts = block_lists.head_counts(16, 512, 0.5, "log-normal")
        assert (counts == 512).sum() > 1
        assert counts.min() < 64
        assert block_lists.head_counts(16, 512, 0.5, "even").unique().tolist() == [256]

    def test_lists_are_ascending_and_in_range(self) -> None:
        counts, indices = block_lists.random_lists(1024, 3, 0.6, "log-normal", "cpu")
        assert counts.shape == (1, 3, 8)
        for head in range(3):
            listed = indices[0, head, :, : int(counts[0, head, 0])]
            assert (listed.diff(dim=1) > 0).all()
            assert listed.min() >= 0
            assert listed.max() < 16
        assert block_lists.selected_scores(counts) == int(counts.sum()) * 128 * 64

    @pytest.mark.parametrize(
        ("arguments", "message"), [((1.0, "even"), r"\[0, 1\), got 1.0"), ((0.5, "odd"), "got 'odd'")]
    )
    def test_bad_settings(self, arguments: tuple, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            block_lists.head_counts(4, 16, *arguments)


class TestBenchmark:
    def test_command_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        options = benchmark.parse([])
        assert options.tokens == [32768, 131072]
        assert options.sparsity == [0.5, 0.75, 0.9]
        for wrong, message in (["--tokens", "1000"], "multiples of 128"), (["--sparsity", "75"], "in [0, 1)"):
            with pytest.raises(SystemExit):
                benchmark.parse(wrong)
            assert message in capsys.readouterr().err

    def test_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """2 heads, 2 rows each, 2 of 4 key blocks: 2 * 2 * 2 * 128 * 64 scores."""
        monkeypatch.setattr(benchmark, "median_ms", lambda function, repeats: function() and 0.5)
        case = benchmark.make_case(256, 2, 16, 0.5, "even", "cpu")

        def absent(case: benchmark.Case) -> None:
            raise ImportError("No module named 'flash_attn'")

        peers = {"good": lambda case: lambda: True, "absent": absent}
        rows = list(benchmark.measure(peers, case, block_lists.selected_scores(case.counts), 1))
        assert rows[0]["tflops"] == pytest.approx(4 * 16 * 65536 / 0.5e-3 / 1e12)
        assert "No module named 'flash_attn'" in rows[1]["skipped"]
        setting = {"tokens": 256, "sparsity": 0.5, "budgets": "even"}
        assert "skipped" not in benchmark.line(setting | rows[0])
        assert "flash_attn" in benchmark.line(setting | rows[1])

    def test_dense_peers_compute_attention(self) -> None:
        case = benchmark.make_case(256, 2, 16, 0.5, "even", "cpu")
        out = benchmark.sdpa("MATH")(case)()
        assert isinstance(out, Tensor)
        assert out.shape == (1, 2, 256, 16)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    @pytest.mark.parametrize("script", [benchmark, tune])
    def test_without_a_gpu(self, script) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(SystemExit, match="finds no CUDA GPU here; nothing was run"):
            script.main([])


class TestTune:
    @pytest.mark.parametrize("kernel", tune.KERNELS)
    def test_neighbours_differ_in_one_option(self, kernel: str) -> None:
        tile = Tile(4, 3)
        found = tune.neighbours(kernel, tile, tma=True)
        assert len(set(found)) == len(found) > 5
        for other in found:
            assert sum(old != new for old, new in zip(tile, other, strict=True)) == 1
        assert any(other.tma for other in found) == (kernel == "forward")
        assert not any(other.tma for other in tune.neighbours(kernel, tile, tma=False))

    def test_search_finds_the_best_and_skips_what_fails(self) -> None:
        timed = []

        def time(tile: Tile) -> float | None:
            timed.append(tile)
            if tile.num_stages == 4:
                return None
            return 10 - tile.tma - 2 * (tile.maxnreg == 128) * tile.tma + tile.frozen

        best, found = tune.descend(Tile(4, 3), lambda tile: tune.neighbours("forward", tile, True), time)
        assert (best.tma, best.maxnreg, best.frozen, found) == (True, 128, False, 7)
        assert len(set(timed)) == len(timed)
        with pytest.raises(ValueError, match="does not launch"):
            tune.descend(Tile(4, 4), lambda tile: [], time)

    def test_writing(self, tmp_path: Path) -> None:
        for dim, tile in ((64, Tile(4, 3, maxnreg=168, tma=True)), (128, Tile(8, 2))):
            path = tune.write("NVIDIA H300 NVL", "forward", dim, tile, "a note", tmp_path)
        table = json.loads(path.read_text(encoding="utf-8"))
        assert path.name == "nvidia_h300_nvl.json"
        assert table["gpu"] == "NVIDIA H300 NVL"
        assert version("triton").startswith(table["triton"] + ".")
        assert table["notes"] == {"forward": "a note"}
        assert table["tiles"]["forward"] == {
            "64": {"num_warps": 4, "num_stages": 3, "maxnreg": 168, "tma": True},
            "128": {"num_warps": 8, "num_stages": 2},
        }
        assert Tile(**table["tiles"]["forward"]["64"]) == Tile(4, 3, maxnreg=168, tma=True)

    def test_what_another_compiler_was_measured_with_is_replaced(self, tmp_path: Path) -> None:
        path = tune.write("NVIDIA H300 NVL", "forward", 64, Tile(4, 3), "old", tmp_path)
        table = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(table | {"gpu": "NVIDIA H300", "triton": "2.1"}))
        assert tune.write("NVIDIA H300 NVL", "backward_keys", 64, Tile(8, 3), "new", tmp_path) == path
        table = json.loads(path.read_text(encoding="utf-8"))
        assert table["gpu"] == "NVIDIA H300"
        assert table["notes"] == {"backward_keys": "new"}
        assert list(table["tiles"]) == ["backward_keys"]
