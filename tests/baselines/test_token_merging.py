"""Token merging: roles and positions against loops, what stays, budgets, and the way back."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from families import MODELS, build, images, layout_of
from test_pruning import outputs
from torch import Tensor

from hess_plugin.backbones import TokenLayout, find_backbone
from hess_plugin.baselines import token_merging
from hess_plugin.baselines.token_merging import (
    TokenMergingConfig,
    TokenMergingProcessor,
    assign_roles,
    merge_tokens,
    merged_positions,
)

SPARSE = [name for name in MODELS if find_backbone(build(name)).dense_only is None]
LAYOUTS = {
    "odd": TokenLayout(3, 2, (5, 7)),
    "specials last": TokenLayout(4, 1, (3, 5), special_last=True, num_trailing_tokens=1),
    "no specials": TokenLayout(2, 0, (4, 4)),
    "one view": TokenLayout(1, 5, (3, 4)),
    "a patch": TokenLayout(3, 1, (1, 1)),
}
CONFIGS = [
    TokenMergingConfig(merged_share=share, region_size=size)
    for share, size in ((0.2, 2), (0.45, 3), (0.9, 2))
]


def qkv(layout: TokenLayout, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(layout.num_tokens)
    return [
        torch.randn(batch, 3, layout.num_tokens, 4, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(3)
    ]


def patch(layout: TokenLayout, view: int, row: int, column: int) -> int:
    """Index of a patch in the global sequence."""
    before = 0 if layout.special_last else layout.num_special_tokens
    return view * layout.tokens_per_view + before + row * layout.grid[1] + column


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> TokenLayout:
    return LAYOUTS[request.param]


@pytest.mark.parametrize("config", CONFIGS)
class TestRoles:
    def test_regions_and_reference(self, layout: TokenLayout, config: TokenMergingConfig) -> None:
        roles = assign_roles(layout, config)
        rows, columns = layout.grid
        destinations, candidates = set(roles.destinations.tolist()), set(roles.candidates.flatten().tolist())
        places = itertools.product(range(layout.num_views), range(rows), range(columns))
        patches = {patch(layout, *place) for place in places}
        assert destinations | candidates == patches
        assert not destinations & candidates
        assert {patch(layout, 0, r, c) for r in range(rows) for c in range(columns)} <= destinations
        found = {
            size
            for size in range(config.region_size, 8)
            if all(
                sum(
                    patch(layout, v, r, c) in destinations
                    for r in range(top, min(top + size, rows))
                    for c in range(left, min(left + size, columns))
                ) == 1
                for v in range(1, layout.num_views)
                for top in range(0, rows, size)
                for left in range(0, columns, size)
            )
        }  # fmt: skip
        assert found

    def test_budgets(self, layout: TokenLayout, config: TokenMergingConfig) -> None:
        roles = assign_roles(layout, config)
        wanted = round(config.merged_share * layout.num_tokens)
        stay = (layout.num_views - 1) * roles.num_salient
        assert roles.num_merged == min(wanted, roles.candidates.numel() - stay)
        q, k, v = qkv(layout)
        processor = TokenMergingProcessor(config)
        processor(q, k, v, layout)
        expected = ((layout.num_tokens - roles.num_merged) / layout.num_tokens) ** 2
        assert processor.density is not None
        assert torch.equal(processor.density, torch.full((2, 3), expected, dtype=torch.float64))

    def test_attention_equals_loops(self, layout: TokenLayout, config: TokenMergingConfig) -> None:
        q, k, v = qkv(layout)
        roles = assign_roles(layout, config)
        found = TokenMergingProcessor(config)(q, k, v, layout)
        for item in range(2):
            group = looped_groups(k[item], layout, config)
            assert sum(len(each) - 1 for each in group) == roles.num_merged
            means = [torch.stack([x[item][:, each].mean(1) for each in group], 1) for x in (q, k, v)]
            probs = torch.softmax(means[0] @ means[1].mT / 2, dim=-1)
            for members, out in zip(group, (probs @ means[2]).unbind(1), strict=True):
                for member in members:  # a merged token has its destination's output
                    torch.testing.assert_close(found[item, :, member], out)


def looped_groups(k: Tensor, layout: TokenLayout, config: TokenMergingConfig) -> list[list[int]]:
    """Tokens that become one, by loops over views and tokens."""
    roles = assign_roles(layout, config)
    vectors = k.transpose(0, 1).flatten(1)  # [T, H D]

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    sources = []
    for view, candidates in enumerate(roles.candidates.tolist(), start=1):
        rows, columns = layout.grid
        everything = [patch(layout, view, r, c) for r in range(rows) for c in range(columns)]
        mean = vectors[everything].mean(0)
        ordered = sorted(candidates, key=lambda index: cosine(vectors[index], mean))
        sources += ordered[math.floor(config.salient_share * len(everything)) :] if ordered else []
    best = []
    for source in sources:
        similar = [cosine(vectors[source], vectors[each]) for each in roles.destinations.tolist()]
        top = max(range(len(similar)), key=similar.__getitem__)
        best.append((similar[top], source, int(roles.destinations[top])))
    merged = sorted(best, reverse=True)[: roles.num_merged]
    groups = {index: [index] for index in range(layout.num_tokens)}
    for _, source, destination in merged:
        groups[destination].append(source)
        del groups[source]
    return list(groups.values())


class TestProcessor:
    def test_one_view_and_share_zero_are_dense(self) -> None:
        dense = torch.nn.functional.scaled_dot_product_attention
        q, k, v = qkv(LAYOUTS["odd"], dtype=torch.float32)
        none = TokenMergingProcessor(TokenMergingConfig(merged_share=0))
        assert torch.equal(none(q, k, v, LAYOUTS["odd"]), dense(q, k, v))
        short = TokenMergingProcessor(TokenMergingConfig(dense_below_tokens=1000))
        assert torch.equal(short(q, k, v, LAYOUTS["odd"]), dense(q, k, v))
        assert short.density is not None
        assert short.density.min() == 1
        q, k, v = qkv(LAYOUTS["one view"], dtype=torch.float32)
        assert torch.equal(TokenMergingProcessor(CONFIGS[2])(q, k, v, LAYOUTS["one view"]), dense(q, k, v))

    def test_equal_tokens_lose_nothing(self) -> None:
        """Merging q, k and v that are equal within a view changes only how often a key is counted."""
        layout, (q, k, v) = LAYOUTS["no specials"], qkv(LAYOUTS["no specials"])
        q, k = torch.ones_like(q), torch.ones_like(k)
        v[:] = v[:, :, :1]
        found = TokenMergingProcessor(CONFIGS[0])(q, k, v, layout)
        torch.testing.assert_close(found, v)

    def test_seed_decides(self) -> None:
        layout, (q, k, v) = LAYOUTS["odd"], qkv(LAYOUTS["odd"])
        first, again, other = (
            TokenMergingProcessor(replace(CONFIGS[1], seed=seed))(q, k, v, layout) for seed in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_chunks_and_batches_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        layout, (_, k, _) = LAYOUTS["odd"], qkv(LAYOUTS["odd"])
        roles = assign_roles(layout, CONFIGS[1])
        whole = merged_positions(k, layout, roles)
        monkeypatch.setattr(token_merging, "SIMILARITY_BYTES", 1)
        assert torch.equal(merged_positions(k, layout, roles), whole)
        assert torch.equal(merged_positions(k[1:], layout, roles), whole[1:])

    def test_half_precision_and_gradients(self) -> None:
        layout, (q, k, v) = LAYOUTS["odd"], qkv(LAYOUTS["odd"], dtype=torch.bfloat16)
        v.requires_grad_(True)
        out = TokenMergingProcessor(CONFIGS[1])(q, k, v, layout)
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
        assert v.grad is not None
        assert (v.grad.float().abs().sum((1, 3)) > 0).all()

    def test_density_to_share(self) -> None:
        layout = TokenLayout(16, 5, (8, 8))
        for density in (0.125, 0.25, 0.5, 0.875):
            q, k, v = qkv(layout, batch=1, dtype=torch.float32)
            processor = TokenMergingProcessor(TokenMergingConfig.at_density(density))
            processor(q, k, v, layout)
            assert processor.density is not None
            assert processor.density.mean().item() == pytest.approx(density, abs=0.005)

    def test_impossible_settings(self) -> None:
        for wrong in ({"merged_share": 1.5}, {"salient_share": -1}, {"region_size": 0}, {"seed": -1}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                TokenMergingConfig(**wrong)


@pytest.mark.parametrize("name", SPARSE)
class TestModels:
    def test_share_zero_is_dense_and_removal_restores(self, name: str) -> None:
        model = build(name)
        dense, modules, layout = outputs(model), [id(module) for module in model.modules()], layout_of(model)
        with merge_tokens(model, TokenMergingConfig(merged_share=0)) as handle:
            none = outputs(model)
            assert handle.stats.density.min() == 1
        with merge_tokens(model, TokenMergingConfig(merged_share=0.3)) as handle:
            assert not all(map(torch.equal, outputs(model), dense))
            left = layout.num_tokens - assign_roles(layout, TokenMergingConfig(merged_share=0.3)).num_merged
            assert left < layout.num_tokens
            assert handle.stats.density.unique().item() == (left / layout.num_tokens) ** 2
        assert [id(module) for module in model.modules()] == modules
        assert all(map(torch.equal, outputs(model), dense))
        if name.startswith("native"):
            assert all(map(torch.equal, none, dense))
        for found, expected in zip(none, dense, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_dense_layers(self, name: str) -> None:
        model = build(name)
        with merge_tokens(model, TokenMergingConfig(merged_share=0.3, dense_layers=(1,))) as handle:
            find_backbone(model).predict(model, images())
            density = handle.stats.density
        assert density[1].min() == 1
        assert density[0].max() < 1
        with pytest.raises(ValueError, match="dense_layers has 9, this model has"):
            merge_tokens(model, TokenMergingConfig(dense_layers=(9,)))
