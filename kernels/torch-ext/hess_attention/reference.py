"""What block-sparse attention computes: once as a dense mask, for tests, and once to be used."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# Scores of one chunk of rows: small enough that its keys and scores stay in a CPU's cache.
_CHUNK_SCORES = 1 << 22

E4M3_MAX = 448.0  # largest value of torch.float8_e4m3fn
LEAST_REACH = 1e-20  # that is scaled: of zeros alone, any scale will do


def block_mask(kv_num_blocks: Tensor, kv_indices: Tensor, num_kv_blocks: int) -> Tensor:
    """The list as a map: [B, H, Mq, Mk] bool, true where a row of queries attends to a key block."""
    listed = torch.arange(kv_indices.shape[-1], device=kv_indices.device) < kv_num_blocks[..., None]
    mask = torch.zeros(*kv_indices.shape[:-1], num_kv_blocks, dtype=torch.int32, device=kv_indices.device)
    return mask.scatter_add_(-1, kv_indices.long().masked_fill(~listed, 0), listed.int()) > 0


def dense_mask_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_num_blocks: Tensor,
    kv_indices: Tensor,
    *,
    special_k: Tensor | None = None,
    special_v: Tensor | None = None,
    q_block_size: int = 128,
    kv_block_size: int = 64,
    lse: Tensor | None = None,
) -> Tensor:
    """The definition: ordinary attention with a mask. Needs [B, H, N, Ns + N] scores; for tests.

    1. Expand the block list to a mask over tokens; the last blocks are cut at token N.
    2. Put the special keys in front, visible to every query.
    3. `softmax(q kᵀ / √D)` over visible keys, times the values; in the dtype of q throughout.
    """
    tokens = q.shape[2]
    blocks = block_mask(kv_num_blocks, kv_indices, -(-tokens // kv_block_size))
    visible = blocks.repeat_interleave(q_block_size, dim=2).repeat_interleave(kv_block_size, dim=3)
    visible = visible[:, :, :tokens, :tokens]
    if special_k is not None and special_v is not None:
        k, v = torch.cat([special_k, k], dim=2), torch.cat([special_v, v], dim=2)
        visible = F.pad(visible, (special_k.shape[2], 0), value=True)
    scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(~visible, -math.inf)
    if lse is not None:
        lse.copy_(scores.detach().logsumexp(-1))
    return scores.softmax(dim=-1) @ v


def e4m3_operands(
    q: Tensor, k: Tensor, special_k: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """What `qk_dtype="fp8"` makes of queries and keys: attention follows from these as from any others.

    1. Take a head's mean key out of all its keys: that moves all scores of a query alike, which softmax does
       not see. What keys have in common would otherwise be rounded with them.
    2. Scale so that the largest entry of a head is the largest of e4m3. One scale per head will do: e4m3 is
       a floating type, and a finer one would only save entries that are 2^14 times smaller from underflow.
    3. Special keys go with the patch keys: the same mean, or their scores would move apart; the same scale.

    Args:
        q: [B, H, N, D].
        k: [B, H, N, D].
        special_k: [B, H, Ns, D] or None.

    Returns:
        q, k and special_k in torch.float8_e4m3fn, and [B, H] float32, by which products are to be multiplied.
    """
    mean = k.float().mean(2, keepdim=True)
    keys = [x.float() - mean for x in (k, special_k) if x is not None]
    scale_q, scale_k = (
        x.abs().amax((2, 3), keepdim=True).clamp(min=LEAST_REACH) / E4M3_MAX
        for x in (q.float(), torch.cat(keys, dim=2))
    )
    low_q = (q.float() / scale_q).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    low_k, *low_special = ((x / scale_k).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn) for x in keys)
    scales = (scale_q * scale_k).flatten(1)
    return low_q, low_k, low_special[0] if low_special else None, scales


def gathered_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_num_blocks: Tensor,
    kv_indices: Tensor,
    *,
    special_k: Tensor | None = None,
    special_v: Tensor | None = None,
    q_block_size: int = 128,
    kv_block_size: int = 64,
    lse: Tensor | None = None,
) -> Tensor:
    """The same in plain PyTorch at the cost of the listed blocks; memory is linear in N.

    1. Cut q, k, v into blocks (zero-padded at the end); a row is one query block of one head of one item.
    2. Order the rows by the length of their list and take them in chunks of similar length.
    3. Copy the listed key and value blocks of each row of a chunk side by side, the special ones in front.
    4. Attend, hiding entries past a row's count and keys past token N; put the rows back in order.
    5. Where a log-sum-exp is asked for, compute the scores once more, which attention keeps to itself.

    Reads the counts on the host, so on a GPU it waits for the device once per call.
    """
    batch, heads, tokens, dim = q.shape
    kv_blocks = -(-tokens // kv_block_size)
    q_rows, k_blocks, v_blocks = _cut(q, q_block_size), _cut(k, kv_block_size), _cut(v, kv_block_size)
    counts, indices = kv_num_blocks.flatten(), kv_indices.flatten(0, 2).long()
    listed = torch.arange(indices.shape[1], device=q.device) < counts[:, None]
    indices = indices.masked_fill(~listed, 0)
    num_special = 0 if special_k is None else special_k.shape[2]
    offsets = torch.arange(kv_block_size, device=q.device)
    order = counts.argsort(descending=True, stable=True)
    lengths = checked_lengths(counts[order], indices, listed, kv_blocks)
    outputs: list[Tensor] = []
    sums: list[Tensor] = []
    for start, stop in _chunks(lengths, q_block_size, kv_block_size, num_special):
        rows = order[start:stop]
        width = lengths[start]
        head = rows // kv_num_blocks.shape[2]  # of batch * heads
        blocks = indices[rows, :width]
        shown = listed[rows, :width, None] & (blocks[..., None] * kv_block_size + offsets < tokens)
        shown = F.pad(shown.flatten(1), (num_special, 0), value=True)
        blocks = blocks + kv_blocks * head[:, None]
        queries, keys = q_rows.index_select(0, rows), _gather(k_blocks, blocks, special_k, head)
        out = F.scaled_dot_product_attention(
            queries[:, None],  # four dimensions, as the fused CPU path wants
            keys[:, None],
            _gather(v_blocks, blocks, special_v, head)[:, None],
            attn_mask=shown[:, None, None],
        )
        outputs.append(out[:, 0])
        if lse is not None:
            scores = queries.detach().to(lse.dtype) @ keys.detach().mT.to(lse.dtype) / math.sqrt(dim)
            sums.append(scores.masked_fill(~shown[:, None], -math.inf).logsumexp(-1, keepdim=True))

    def merged(parts: list[Tensor]) -> Tensor:
        rows = torch.cat(parts).index_select(0, order.argsort())
        return rows.view(batch, heads, -1, rows.shape[-1])[:, :, :tokens]

    if lse is not None:
        lse.copy_(merged(sums)[..., 0])
    return merged(outputs)


def _cut(x: Tensor, block: int) -> Tensor:
    """[B, H, N, D] as blocks of tokens, [B * H * M, block, D], the last of each head padded with zeros."""
    x = F.pad(x, (0, 0, 0, -x.shape[2] % block))
    return x.reshape(-1, block, x.shape[3])


def _gather(blocks: Tensor, index: Tensor, special: Tensor | None, head: Tensor) -> Tensor:
    """The special tokens of each row's head, then the tokens of its blocks: [rows, Ns + width * block, D]."""
    tokens = blocks.index_select(0, index.flatten()).unflatten(0, index.shape).flatten(1, 2)
    if special is None:
        return tokens
    return torch.cat([special.flatten(0, 1).index_select(0, head), tokens], dim=1)


def _chunks(
    lengths: list[int], q_block_size: int, kv_block_size: int, num_special: int
) -> Iterator[tuple[int, int]]:
    """Runs of rows, start and stop, of bounded cost; the lengths of their lists are in descending order."""
    start = 0
    while start < len(lengths):
        row_scores = q_block_size * (lengths[start] * kv_block_size + num_special)
        stop = min(len(lengths), start + max(1, _CHUNK_SCORES // row_scores))
        yield start, stop
        start = stop


def checked_lengths(counts: Tensor, indices: Tensor, listed: Tensor, kv_blocks: int) -> list[int]:
    """The descending counts on the host, after checking that lists are strictly ascending in [0, Mk)."""
    steps = (indices.diff(dim=1) > 0) | ~listed[:, 1:]
    facts = torch.stack([indices.amin(), indices.amax(), steps.all().long()])
    *lengths, low, high, ascending = torch.cat([counts.long(), facts]).tolist()  # one wait for the device
    width = indices.shape[1]
    if not 1 <= lengths[-1] <= lengths[0] <= width:
        raise ValueError(
            f"kv_num_blocks must be in [1, {width}], the width of kv_indices; "
            f"got {lengths[-1]} to {lengths[0]}."
        )
    if low < 0 or high >= kv_blocks:
        raise ValueError(f"kv_indices must be in [0, {kv_blocks}); got values from {low} to {high}.")
    if not ascending:
        raise ValueError("kv_indices must be strictly ascending within each row; some rows are not.")
    return lengths
