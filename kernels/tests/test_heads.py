"""Norm and rotation of heads: the kernels against PyTorch in float64, and which calls they take."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hess_attention import heads, norm_heads, rotate_heads
from torch import Tensor

triton_heads = pytest.importorskip("hess_attention.triton_heads")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Triton's interpreter takes bfloat16 for integers.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
SHAPES = [(1, 1, 1, 16), (2, 3, 77, 32), (1, 2, 130, 64), (2, 1, 45, 128)]


def projected(batch: int, num_heads: int, tokens: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Queries and keys [B, H, N, D] as a fused projection gives them: views with gaps between tokens."""
    generator = torch.Generator().manual_seed(tokens)
    qkv = 3 * torch.randn(batch, tokens, 3, num_heads, dim, generator=generator) + 1
    q, k, _ = qkv.to(DEVICE, dtype).permute(2, 0, 3, 1, 4)
    return q, k


def affine(dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(dim)
    weight, bias = (torch.randn(2, dim, generator=generator) + 1).to(DEVICE, dtype)
    return weight, bias


def angles_of(period: int, dim: int) -> Tensor:
    """[P, D], up to 40 radians, equal in both entries of a pair."""
    generator = torch.Generator().manual_seed(period)
    rows = 40 * torch.rand(period, 2, 1, dim // 4, generator=generator)
    return rows.expand(-1, -1, 2, -1).flatten(1).to(DEVICE)


def turned_by_pairs(x: Tensor, angles: Tensor) -> Tensor:
    """Each pair as a complex number, turned by its angle, in float64."""
    *_, tokens, dim = x.shape
    rows = angles.double().repeat(-(-tokens // len(angles)), 1)[:tokens].view(tokens, 2, 2, dim // 4)
    first, second = x.double().unflatten(-1, (2, 2, -1)).unbind(-2)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(rows[:, :, 0]), rows[:, :, 0])
    return torch.stack((turned.real, turned.imag), -2).flatten(-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norm(shape: tuple[int, ...], dtype: torch.dtype, poisoned_memory: None) -> None:
    weight, bias = affine(shape[3], dtype)
    for x in projected(*shape, dtype):
        found = triton_heads.norm(x, weight, bias, 1e-5, dtype)
        expected = F.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), 1e-5)
        assert (found.shape, found.dtype, found.is_contiguous()) == (x.shape, dtype, True)
        # One rounding to the type, and a few to float32 on the way.
        torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps, atol=4e-6)


def test_norm_of_half_precision_in_float32() -> None:
    """What autocast asks for."""
    weight, bias = affine(32, torch.float32)
    x, _ = projected(1, 2, 19, 32, torch.float16)
    found = triton_heads.norm(x, weight, bias, 1e-6, torch.float32)
    expected = F.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), 1e-6)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "period"), [(SHAPES[0], 1), (SHAPES[1], 11), (SHAPES[2], 65), (SHAPES[3], 45)]
)
def test_rotation(shape: tuple[int, ...], period: int, dtype: torch.dtype, poisoned_memory: None) -> None:
    angles = angles_of(period, shape[3])
    for x in projected(*shape, dtype):
        expected = turned_by_pairs(x, angles)
        found = triton_heads.rotate(x, angles.cos(), angles.sin())
        assert (found.shape, found.dtype, found.is_contiguous()) == (x.shape, dtype, True)
        allowed = torch.finfo(dtype).eps * expected.abs() + 1e-6 * x.double().abs().max()
        assert ((found.double() - expected).abs() <= allowed).all()
        # The twin rounds sine and cosine, both products and their sum.
        twin = (rotate_heads(x, angles).double() - expected).abs().max()
        assert twin <= 4 * torch.finfo(dtype).eps * x.abs().max()


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that calls reach, however few elements they have."""
    reached: list[str] = []
    monkeypatch.setattr(heads, "MIN_ELEMENTS", 1)
    monkeypatch.setattr(heads, "compiles_for", lambda device: True)
    for name in ("norm", "rotate"):
        kernel = getattr(triton_heads, name)
        monkeypatch.setattr(
            triton_heads, name, lambda *call, name=name, kernel=kernel: reached.append(name) or kernel(*call)
        )
    return reached


class TestChoice:
    """Everything that the kernels do not take is PyTorch's; both give the same."""

    def call(self, x: Tensor, weight: Tensor, bias: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        return norm_heads(x, weight, bias, 1e-5), rotate_heads(x, angles)

    def inputs(self, dtype: torch.dtype = torch.float32, dim: int = 16) -> tuple[Tensor, ...]:
        return projected(1, 2, 22, dim, dtype)[0], *affine(dim, dtype), angles_of(11, dim)

    def test_taken(self, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = self.call(*self.inputs())
        reached = as_on_a_gpu(monkeypatch)
        for found, plain in zip(self.call(*self.inputs()), expected, strict=True):
            torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
        assert reached == ["norm", "rotate"]

    def test_autocast_norms_in_float32(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, *_ = self.inputs(torch.float16)
        weight, bias = affine(16, torch.float32)
        reached = as_on_a_gpu(monkeypatch)
        with torch.autocast(DEVICE, torch.float16 if DEVICE == "cuda" else torch.bfloat16):
            found = norm_heads(x, weight, bias, 1e-5)
        assert reached == ["norm"]
        expected = F.layer_norm(x.float(), x.shape[-1:], weight, bias)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("why", ["few", "gradient", "dtype", "dim"])
    def test_left_to_pytorch(self, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
        call = self.inputs(*{"dtype": (torch.float64,), "dim": (torch.float32, 24)}.get(why, ()))
        expected = self.call(*call)
        reached = as_on_a_gpu(monkeypatch)
        if why == "few":
            monkeypatch.setattr(heads, "MIN_ELEMENTS", 1 + call[0].numel())
        if why == "gradient":
            call = (call[0].requires_grad_(), *call[1:])
        found = self.call(*call)
        assert reached == []
        assert all(map(torch.equal, found, expected))
        assert all(x.requires_grad for x in found) == (why == "gradient")

    def test_types_that_pytorch_refuses_together_are_still_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        as_on_a_gpu(monkeypatch)
        x, _, _, _ = self.inputs(torch.float16)
        with pytest.raises(RuntimeError):
            norm_heads(x, *affine(16, torch.float64), 1e-5)

    @pytest.mark.parametrize("short", [0, 1])
    def test_short_weights_are_refused(self, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not read past their end."""
        reached = as_on_a_gpu(monkeypatch)
        x, *parameters, _ = self.inputs()
        parameters[short] = parameters[short][:8]
        with pytest.raises(RuntimeError):
            norm_heads(x, *parameters, 1e-5)
        assert reached == []

    @pytest.mark.parametrize("shape", [(11, 8), (10, 16), (11, 16, 1)])
    def test_angles_of_other_views_or_heads(
        self, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x, *_ = self.inputs()
        for _ in range(2):
            with pytest.raises(ValueError, match=r"angles must be \[P, 16\], where P, .*, divides 22"):
                rotate_heads(x, torch.zeros(shape, device=DEVICE))
            as_on_a_gpu(monkeypatch)

    def test_tensors_without_data(self) -> None:
        """Of a device that knows no autocast."""
        x, *parameters, angles = (x.to("meta") for x in self.inputs())
        assert norm_heads(x, *parameters, 1e-5).shape == rotate_heads(x, angles).shape == x.shape

    def test_one_graph(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reached = as_on_a_gpu(monkeypatch)
        compiled = torch.compile(self.call, backend="aot_eager", fullgraph=True)
        for found, eager in zip(compiled(*self.inputs()), self.call(*self.inputs()), strict=True):
            assert torch.equal(found, eager)
        assert reached == 2 * ["norm", "rotate"]

    def test_operators(self) -> None:
        x, weight, bias, angles = self.inputs()
        torch.library.opcheck(heads._norm_op, (x, weight, bias, 1e-5, torch.float32))
        torch.library.opcheck(heads._rotate_op, (x, angles.cos(), angles.sin()))
