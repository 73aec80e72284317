"""What the rest of the package may ask of a model family; only this folder knows the attributes of models."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PointSource


@dataclass(frozen=True)
class TokenLayout:
    """How the T tokens of a global-attention sequence are laid out.

    Views follow one another; each view holds its S special tokens first, then its patches row by row.

    Example:
        >>> layout = TokenLayout(num_views=3, num_special_tokens=5, grid=(2, 4))
        >>> layout.patches_per_view, layout.tokens_per_view, layout.num_tokens
        (8, 13, 39)
    """

    num_views: int  # V
    num_special_tokens: int  # S, per view
    grid: tuple[int, int]  # rows and columns of patches

    @classmethod
    def from_images(cls, images: Tensor, num_special_tokens: int, patch_size: tuple[int, int]) -> TokenLayout:
        """Layout for images [V, 3, height, width] or [B, V, 3, height, width]; else ValueError."""
        if not isinstance(images, Tensor) or images.ndim not in (4, 5):
            given = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(
                f"images must be a tensor [V, 3, height, width] or [B, V, 3, height, width], got {given}."
            )
        num_views, _, height, width = images.shape[-4:]
        return cls(num_views, num_special_tokens, (height // patch_size[0], width // patch_size[1]))

    @property
    def patches_per_view(self) -> int:
        """Patch tokens of one view."""
        return self.grid[0] * self.grid[1]

    @property
    def tokens_per_view(self) -> int:
        """P: special and patch tokens of one view."""
        return self.num_special_tokens + self.patches_per_view

    @property
    def num_tokens(self) -> int:
        """T = V * P."""
        return self.num_views * self.tokens_per_view


@dataclass(frozen=True)
class Reconstruction:
    """A model's prediction in one convention, batched; gradients flow through every field.

    Convention: OpenCV cameras, `x_camera = R x_world + t` with `extrinsics = [R | t]`; depth is z in the
    camera. World frame and scale are the model's own.
    """

    extrinsics: Tensor  # [B, V, 3, 4], world to camera
    points: Tensor  # [B, V, height, width, 3], world
    confidence: Tensor  # [B, V, height, width], higher is better; its range depends on the family
    depth: Tensor  # [B, V, height, width]


class Backbone(ABC):
    """One model family, recognised by its module tree. Stateless: every fact is read from the model given.

    `model` and `attn` are typed Any where attributes are read: classes of any package may have this tree.
    """

    name: str  # as written into sidecars
    image_argument: str  # keyword of the images in the forward of `image_module`

    @abstractmethod
    def matches(self, model: nn.Module) -> bool:
        """Whether the model has this family's module tree, whatever package its class comes from."""

    @abstractmethod
    def image_module(self, model: Any) -> nn.Module:
        """The module whose forward takes the images and runs the global attentions."""

    @abstractmethod
    def global_attentions(self, model: Any) -> dict[str, nn.Module]:
        """Dotted name and module of every global attention, in layer order."""

    @abstractmethod
    def num_special_tokens(self, model: Any) -> int:
        """S: special tokens at the start of each view."""

    @abstractmethod
    def patch_size(self, model: Any) -> tuple[int, int]:
        """Height and width of a patch in pixels."""

    @abstractmethod
    def project_qkv(self, attn: Any, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, H, T, D] of tokens x [B, T, C] as the attention itself computes them.

        After qk-norm and RoPE; q and k in v's dtype, in which the family runs its attention product.
        Further arguments are those of the original attention's forward.
        """

    @abstractmethod
    def reconstruct(
        self, outputs: Mapping[str, Any], point_source: PointSource = "point_head"
    ) -> Reconstruction:
        """The forward's outputs (dict or ModelOutput) in the convention of `Reconstruction`.

        `point_source` says where points come from in a family that predicts them twice.
        """

    def images(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The image tensor among the arguments of the forward of `image_module`."""
        return args[0] if args else kwargs.get(self.image_argument)

    def num_heads(self, attn: Any) -> int:
        """H."""
        return attn.num_heads

    def head_dim(self, attn: Any) -> int:
        """D."""
        return attn.qkv.out_features // (3 * attn.num_heads)

    def query_weight(self, attn: Any) -> tuple[nn.Parameter, slice]:
        """The weight that holds W_Q and the rows of W_Q in it; head h owns rows h*D to (h+1)*D of these."""
        return attn.qkv.weight, slice(0, self.num_heads(attn) * self.head_dim(attn))

    def weights_sha256(self, model: Any) -> str | None:
        """Fingerprint of the global attentions' projections; None where it would say nothing.

        Taken from bfloat16 values, so that a checkpoint gives the same when loaded in float32 or bfloat16.
        Loaded in float16 it was rounded in another place, and offloaded weights cannot be read: None.
        """
        digest = hashlib.sha256()
        for attn in self.global_attentions(model).values():
            weight = self.query_weight(attn)[0].detach()
            if weight.is_meta or weight.dtype == torch.float16:
                return None
            digest.update(weight.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
        return digest.hexdigest()


def has_attributes(owner: object, *names: str) -> bool:
    """Whether the object has all these attributes."""
    return all(hasattr(owner, name) for name in names)


def are_attention_blocks(blocks: object) -> bool:
    """Whether this is a non-empty list of blocks whose `attn` has fused projections, qk-norm and RoPE."""
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        return False
    names = ("num_heads", "qkv", "q_norm", "k_norm", "proj", "rope")
    return all(has_attributes(getattr(block, "attn", None), *names) for block in blocks)


def split_heads(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised q and k, and v, each [B, H, T, D]; the fused rows are ordered by (q k v), head, dim."""
    qkv = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    return attn.q_norm(q), attn.k_norm(k), v


def conv_patch_size(encoder: nn.Module) -> tuple[int, int]:
    """Kernel height and width of the encoder's patch convolution, its first Conv2d."""
    height, width = next(m.kernel_size for m in encoder.modules() if isinstance(m, nn.Conv2d))
    return height, width


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in float64 if it is: camera geometry is never done in half precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
