"""Block-sparse attention against every other implementation that is installed; needs a CUDA GPU.

    python kernels/benchmarks/benchmark.py --json results.json
    python kernels/benchmarks/benchmark.py --backward

One table: median milliseconds and executed TFLOP/s, which count 4 D operations (10 D of the backward pass)
for every query-key pair in the lists (for dense attention: every pair), so that skipping is no speed. Below
it, how far our kernels are from float64. The time of "hess_attention fp8" includes quantising.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from block_lists import KV_BLOCK, Q_BLOCK, median_ms, random_lists, require_gpu, selected_scores
from torch import Tensor
from torch.nn import functional as F


class Case(NamedTuple):
    """One problem; q, k and v are [1, H, T, D] in bfloat16."""

    q: Tensor
    k: Tensor
    v: Tensor
    counts: Tensor
    indices: Tensor


def ours(case: Case) -> Callable[[], Tensor]:
    """The Triton kernel."""
    from hess_attention import block_sparse_attention

    return lambda: block_sparse_attention(*case, backend="triton")


def ours_fp8(case: Case) -> Callable[[], Tensor]:
    """The same with products of queries and keys in fp8, and the quantisation for it."""
    from hess_attention import block_sparse_attention

    return lambda: block_sparse_attention(*case, backend="triton", qk_dtype="fp8")


def flex(case: Case) -> Callable[[], object]:
    """FlexAttention; its mask is made once and all blocks are whole, so that only attention is timed."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    tokens = case.q.shape[2]
    indices = F.pad(case.indices, (0, tokens // KV_BLOCK - case.indices.shape[3]))  # its lists are full wide
    none = torch.zeros_like(case.counts), torch.zeros_like(indices)
    mask = BlockMask.from_kv_blocks(
        *none, case.counts, indices, BLOCK_SIZE=(Q_BLOCK, KV_BLOCK), seq_lengths=(tokens, tokens)
    )
    attend: Callable[..., object] = torch.compile(flex_attention, dynamic=False)
    tiles = {"BLOCK_M": Q_BLOCK, "BLOCK_N": KV_BLOCK}
    return lambda: attend(case.q, case.k, case.v, block_mask=mask, kernel_options=tiles)


def flash4_sparse(case: Case) -> Callable[[], object]:
    """FlashAttention-4 on the same lists."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    from flash_attn.cute.interface import _flash_attn_fwd

    q, k, v = (x.transpose(1, 2).contiguous() for x in case[:3])
    lists = BlockSparseTensorsTorch(
        mask_block_cnt=torch.zeros_like(case.counts),
        mask_block_idx=torch.zeros_like(case.indices),
        full_block_cnt=case.counts,
        full_block_idx=case.indices,
        block_size=(Q_BLOCK, KV_BLOCK),
    )
    return lambda: _flash_attn_fwd(
        q, k, v, block_sparse_tensors=lists, tile_mn=(Q_BLOCK, KV_BLOCK), return_lse=True
    )


def flash4_dense(case: Case) -> Callable[[], object]:
    """FlashAttention-4 without lists."""
    from flash_attn.cute.interface import _flash_attn_fwd

    q, k, v = (x.transpose(1, 2).contiguous() for x in case[:3])
    return lambda: _flash_attn_fwd(q, k, v)


def sdpa(backend: str) -> Callable[[Case], Callable[[], object]]:
    """One of PyTorch's own dense implementations, by name: its default is not always the fastest."""

    def prepare(case: Case) -> Callable[[], object]:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        def run() -> Tensor:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return torch.nn.functional.scaled_dot_product_attention(*case[:3])

        return run

    return prepare


def backward(prepare: Callable[[Case], Callable[[], Any]]) -> Callable[[Case], Callable[[], object]]:
    """The backward pass alone of an implementation."""

    def prepared(case: Case) -> Callable[[], object]:
        leaves = [x.detach().requires_grad_() for x in case[:3]]
        out = prepare(Case(*leaves, *case[3:]))()
        grad = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

    return prepared


OURS = {"hess_attention": ours, "hess_attention fp8": ours_fp8}
SPARSE = {**OURS, "FlexAttention": flex, "FlashAttention-4": flash4_sparse}
DENSE = {
    "cuDNN": sdpa("CUDNN_ATTENTION"),
    "FlashAttention-2": sdpa("FLASH_ATTENTION"),
    "FlashAttention-4": flash4_dense,
}


def measure(
    peers: Mapping[str, Callable[[Case], Callable[[], object]]],
    case: Case,
    scores: int,
    repeats: int,
    of_backward: bool = False,
) -> Iterator[dict[str, object]]:
    """One row per peer; one that is not installed or fails says why instead of a time."""
    operations = (10 if of_backward else 4) * case.q.shape[3] * scores
    for name, prepare in peers.items():
        try:
            time = median_ms((backward(prepare) if of_backward else prepare)(case), repeats)
        except Exception as error:  # each peer has its own way to say that it cannot
            yield {"peer": name, "skipped": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
        else:
            yield {"peer": name, "ms": time, "tflops": operations / time / 1e9}


def make_case(tokens: int, heads: int, dim: int, sparsity: float, budgets: str, device: str) -> Case:
    """Normal q, k and v, and random lists."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (3, 1, heads, tokens, dim)
    q, k, v = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
    return Case(q, k, v, *random_lists(tokens, heads, sparsity, budgets, device))


def run(options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """All rows of the table, as they are measured."""
    sparse, dense_peers = (
        {name: peer for name, peer in peers.items() if name in options.peers} for peers in (SPARSE, DENSE)
    )
    for tokens in options.tokens:
        dense = make_case(tokens, options.heads, options.dim, 0.99, "even", "cuda")
        setting: dict[str, object] = {"tokens": tokens, "sparsity": 0.0, "budgets": "dense"}
        for row in measure(dense_peers, dense, options.heads * tokens**2, options.repeats, options.backward):
            yield setting | row
        for sparsity in options.sparsity:
            for budgets in options.budgets:
                case = make_case(tokens, options.heads, options.dim, sparsity, budgets, "cuda")
                measured = 1 - selected_scores(case.counts) / (options.heads * tokens**2)
                setting = {"tokens": tokens, "sparsity": measured, "budgets": budgets}
                for row in measure(
                    sparse, case, selected_scores(case.counts), options.repeats, options.backward
                ):
                    yield setting | row


def errors(options: argparse.Namespace, device: str = "cuda") -> Iterator[dict[str, object]]:
    """Relative to float64, of our kernels on 2048 tokens, without and with a part that all keys share."""
    from hess_attention import dense_mask_attention

    for common in (0.0, 2.0):
        case = make_case(2048, 4, options.dim, 0.5, "even", device)
        case = case._replace(k=case.k + common * case.q[:, :, :1])
        q, k, v = (x.double() for x in case[:3])
        truth = dense_mask_attention(q, k, v, case.counts, case.indices)
        for name in (name for name in OURS if name in options.peers):
            setting = {"peer": name, "common part": common}
            try:
                out = OURS[name](case)()
            except ValueError as error:  # what this GPU or head dimension does not have
                yield setting | {"skipped": str(error)}
            else:
                yield setting | {"relative error": float((out - truth).norm() / truth.norm())}


def line(row: dict[str, object]) -> str:
    """A row of the table as text."""
    result = f"{row['ms']:9.3f} ms {row['tflops']:6.0f} TFLOP/s" if "ms" in row else f"  {row['skipped']}"
    return f"{row['tokens']:>8} {row['sparsity']:7.1%} {row['budgets']:10} {row['peer']:18} {result}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; lengths must fill their blocks, for then every count is exact."""
    parser = argparse.ArgumentParser(description="Time block-sparse attention and its peers on a GPU.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[32768, 131072])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.75, 0.9])
    parser.add_argument(
        "--budgets", nargs="+", choices=["even", "log-normal"], default=["even", "log-normal"]
    )
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    peers = [*SPARSE, *(name for name in DENSE if name not in SPARSE)]
    parser.add_argument(
        "--peers", nargs="+", choices=peers, default=peers, help="FlexAttention compiles long"
    )
    parser.add_argument("--backward", action="store_true", help="time the backward pass instead")
    parser.add_argument("--json", type=Path, help="write the rows, the GPU and the versions here")
    options = parser.parse_args(arguments)
    if any(tokens % Q_BLOCK for tokens in options.tokens):
        parser.error(f"--tokens must be multiples of {Q_BLOCK}, got {options.tokens}.")
    if not all(0 <= sparsity < 1 for sparsity in options.sparsity):
        parser.error(f"--sparsity must be in [0, 1), got {options.sparsity}.")
    return options


def versions() -> dict[str, str]:
    """Of what was measured."""
    found = {"gpu": torch.cuda.get_device_name(), "cudnn": str(torch.backends.cudnn.version())}
    for name in ("torch", "triton", "flash-attn-4"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print the table and write the JSON."""
    options = parse(arguments)
    require_gpu()
    rows = []
    print(versions())
    for row in run(options):
        rows.append(row)
        print(line(row), flush=True)
    deviations = [] if options.backward else list(errors(options))
    for row in deviations:
        print(row)
    if options.json:
        command = ["python", *sys.argv] if arguments is None else arguments
        options.json.write_text(
            json.dumps({"command": command, **versions(), "rows": rows, "errors": deviations}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
