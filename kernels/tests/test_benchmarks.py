"""The benchmarks without a GPU: lists, command lines, the search, and what is written."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hess_attention.tuning import CONFIGS, Tile
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

    def test_only_the_peers_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(benchmark, "measure", lambda peers, *others: ({"peer": name} for name in peers))
        make = benchmark.make_case
        monkeypatch.setattr(benchmark, "make_case", lambda *args: make(*args[:-1], "cpu"))
        size = ["--tokens", "256", "--heads", "2", "--dim", "16", "--sparsity", "0.5", "--budgets", "even"]
        named = [row["peer"] for row in benchmark.run(benchmark.parse(size))]
        assert named == [*benchmark.DENSE, *benchmark.SPARSE]
        options = benchmark.parse([*size, "--peers", "cuDNN", "hess_attention"])
        assert [row["peer"] for row in benchmark.run(options)] == ["cuDNN", "hess_attention"]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="of the interpreter")
    def test_errors_of_both_types(self, monkeypatch: pytest.MonkeyPatch) -> None:
        make = benchmark.make_case

        def small(tokens: int, *rest: object) -> benchmark.Case:
            q, k, v, *lists = make(256, *rest)
            return benchmark.Case(q.half(), k.half(), v.half(), *lists)

        monkeypatch.setattr(benchmark, "make_case", small)
        plain, fp8, plain_common, fp8_common = (
            row["relative error"] for row in benchmark.errors(benchmark.parse(["--dim", "32"]), "cpu")
        )
        assert 0 < plain < 0.01 < fp8 < 0.1
        assert 0 < plain_common < 0.01 < fp8_common < 1.2 * fp8
        (row, *_) = benchmark.errors(benchmark.parse(["--dim", "16", "--peers", "hess_attention fp8"]), "cpu")
        assert "head dimension" in str(row["skipped"])

    def test_dense_peers_compute_attention(self) -> None:
        case = benchmark.make_case(256, 2, 16, 0.5, "even", "cpu")
        out = benchmark.sdpa("MATH")(case)()
        assert isinstance(out, Tensor)
        assert out.shape == (1, 2, 256, 16)

    def test_backward_is_timed_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        case = benchmark.make_case(256, 2, 16, 0.5, "even", "cpu")
        grads = benchmark.backward(benchmark.sdpa("MATH"))(case)()
        assert [x.shape for x in grads] == [case.q.shape] * 3
        monkeypatch.setattr(benchmark, "median_ms", lambda function, repeats: function() and 0.5)
        row = next(benchmark.measure({"dense": benchmark.sdpa("MATH")}, case, 100, 1, of_backward=True))
        assert row["tflops"] == pytest.approx(10 * 16 * 100 / 0.5e-3 / 1e12)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    @pytest.mark.parametrize("script", [benchmark, tune])
    def test_without_a_gpu(self, script) -> None:  # type: ignore[no-untyped-def]
        with pytest.raises(SystemExit, match="finds no CUDA GPU here; nothing was run"):
            script.main([])


class TestTune:
    @pytest.mark.parametrize("kernel", tune.KERNELS)
    def test_candidates_hold_what_is_shipped(self, kernel: str) -> None:
        tiles = list(tune.candidates(kernel, tma=True))
        assert len(set(tiles)) == len(tiles)
        for path in CONFIGS.glob("*.json"):
            table = json.loads(path.read_text(encoding="utf-8"))
            assert Tile(**table["tiles"][kernel]["64"]) in tiles
        assert not any(tile.tma for tile in tune.candidates(kernel, tma=False))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="of the interpreter")
    @pytest.mark.parametrize("kernel", ["forward", "backward_keys"])
    def test_what_is_wrong_is_refused(self, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
        small = {"tokens": 70, "device": "cpu", "dtype": torch.float16}
        assert tune.refusal(kernel, 16, Tile(4, 2), **small) is None
        right = tune.launch
        monkeypatch.setattr(tune, "launch", lambda *args: [x * 1.1 for x in right(*args)])
        assert "its error is" in str(tune.refusal(kernel, 16, Tile(4, 2), **small))

        def fails(*args: object) -> None:
            raise RuntimeError("out of resource")

        monkeypatch.setattr(tune, "launch", fails)
        assert tune.refusal(kernel, 16, Tile(4, 2), **small) == "RuntimeError: ['out of resource']"

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
