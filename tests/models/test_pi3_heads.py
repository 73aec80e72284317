from __future__ import annotations

import torch

from hess_plugin.models.pi3_heads import PatchesToPixels, SameDtypeHeadNorm, nearest_rotation


def test_first_pixel_of_each_patch():
    """Channel k·196 + a·14 + b of patch (i, j) is channel k of pixel (14 i + a, 14 j + b)."""
    head = PatchesToPixels(48, 3, 14)
    with torch.no_grad():
        head.proj.weight.zero_()
        head.proj.weight[:, 0] = torch.arange(588.0)
        head.proj.bias.zero_()
        tokens = torch.zeros(1, 6, 48)
        tokens[0, :, 0] = torch.arange(1.0, 7.0)
        maps = head(tokens, (2, 3))
    assert maps.shape == (1, 28, 42, 3)
    assert maps[0, 14 + 3, 28 + 5].tolist() == [6 * (k * 196 + 3 * 14 + 5) for k in range(3)]
    assert maps[0, 13, 14].tolist() == [2 * (k * 196 + 13 * 14) for k in range(3)]


def test_nearest_rotation():
    torch.manual_seed(0)
    matrices = torch.randn(20, 3, 3, dtype=torch.float64)
    rotations = nearest_rotation(matrices)
    torch.testing.assert_close(torch.linalg.det(rotations), torch.ones(20, dtype=torch.float64))
    torch.testing.assert_close(nearest_rotation(rotations), rotations)
    torch.testing.assert_close(nearest_rotation(3 * rotations), rotations)
    # Nearest: no small turn comes closer.
    distance = (rotations - matrices).flatten(1).norm(dim=1)
    for axis in torch.eye(3, dtype=torch.float64):
        for angle in (1e-3, -1e-3):
            skew = torch.linalg.cross(axis.expand(3, 3), torch.eye(3, dtype=torch.float64)) * angle
            other = rotations @ torch.linalg.matrix_exp(skew)
            assert ((other - matrices).flatten(1).norm(dim=1) > distance).all()


def test_nearest_rotation_gradient():
    torch.manual_seed(0)
    matrices = torch.randn(6, 3, 3, dtype=torch.float64)
    matrices = torch.cat((matrices, torch.eye(3, dtype=torch.float64)[None]))  # equal singular values
    assert torch.autograd.gradcheck(nearest_rotation, matrices.requires_grad_())
    for hard in [torch.eye(3), torch.zeros(3, 3), torch.ones(3, 3), torch.diag(torch.tensor([1.0, 1, -1]))]:
        hard = hard.clone().requires_grad_()
        rotation = nearest_rotation(hard)
        rotation.sum().backward()
        assert rotation.isfinite().all()
        assert hard.grad.isfinite().all()


def test_qk_norm_keeps_the_dtype_under_autocast():
    norm = SameDtypeHeadNorm(8)
    x = torch.randn(3, 8)
    assert torch.equal(norm(x), torch.nn.functional.layer_norm(x, (8,)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert norm(x.bfloat16()).dtype == torch.bfloat16
        assert norm(x).dtype == torch.float32
