"""What the rest of the package may ask of a model family; only this folder knows the attributes of models."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..config import PROJECTIONS, PointSource, Projection


@dataclass(frozen=True)
class TokenLayout:
    """How the T tokens of a global-attention sequence are laid out.

    Views follow one another; each view holds its patches row by row, with its S special tokens before or
    after them. Tokens that belong to no view end the sequence.

    Example:
        >>> layout = TokenLayout(num_views=3, num_special_tokens=5, grid=(2, 4))
        >>> layout.patches_per_view, layout.tokens_per_view, layout.num_tokens
        (8, 13, 39)
        >>> TokenLayout(3, 1, (2, 4), special_last=True, num_trailing_tokens=1).num_tokens
        28
    """

    num_views: int  # V
    num_special_tokens: int  # S, per view
    grid: tuple[int, int]  # rows and columns of patches
    special_last: bool = False  # special tokens come after the patches of their view
    num_trailing_tokens: int = 0  # after all views; treated like special tokens

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
        """T = V * P, and the trailing tokens."""
        return self.num_views * self.tokens_per_view + self.num_trailing_tokens


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


@dataclass(frozen=True)
class Pieces:
    """What `save_memory` may do to a model: call modules piece by piece, drop outputs that no head reads."""

    by_view: tuple[nn.Module, ...]  # the first axis is views, which do not see each other
    by_token: tuple[nn.Module, ...]  # [..., C] to [..., C], tokens do not see each other
    width: int  # C of the two halves of which each layer output is put together
    depth: int  # number of layer outputs
    read_layers: frozenset[int]  # those that a head reads


class Backbone(ABC):
    """One model family, recognised by its module tree. Stateless: every fact is read from the model given.

    `model` and `attn` are typed Any where attributes are read: classes of any package may have this tree.
    """

    name: str  # as written into sidecars
    image_argument: str  # keyword of the images in the forward of `image_module`
    camera_weight: float = 0.5  # λ of Eq. 9 that the paper takes for the family
    dense_only: str | None = None  # why its attention cannot be made sparse; None where it can

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
    def token_layout(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TokenLayout:
        """Layout of the global sequence in one call of `image_module`, from its inputs and parameters.

        Never from token positions: some families have none, in another they are constant.
        """

    @abstractmethod
    def patch_size(self, model: Any) -> tuple[int, int]:
        """Height and width of a patch in pixels; images are multiples of it."""

    @abstractmethod
    def project_qkv(self, attn: Any, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [B, H, T, D] of tokens x [B, T, C] as the attention itself computes them.

        After qk-norm and RoPE; q and k in v's dtype, in which the family runs its attention product.
        Further arguments are those of the original attention's forward.
        """

    @abstractmethod
    def reconstruct(self, outputs: Any, point_source: PointSource = "point_head") -> Reconstruction:
        """What `predict` returns in the convention of `Reconstruction`.

        `point_source` says where points come from in a family that predicts them twice.
        """

    def pieces(self, model: Any) -> Pieces | None:
        """See `Pieces`; None where they are not known, or where the model saves memory by itself."""
        return None

    def predict(self, model: Any, images: Tensor) -> Any:
        """Outputs for images [B, V, 3, height, width] in [0, 1], in the family's own form, with gradients.

        Families take images in different forms; by this method calibration and evaluation need not know.
        """
        return model(images)

    def images(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The image tensor among the arguments of the forward of `image_module`."""
        return args[0] if args else kwargs.get(self.image_argument)

    def num_heads(self, attn: Any) -> int:
        """H."""
        return attn.num_heads

    def head_dim(self, attn: Any) -> int:
        """D."""
        return attn.qkv.out_features // (3 * attn.num_heads)

    def projection_weight(self, attn: Any, projection: Projection) -> tuple[nn.Parameter, slice]:
        """The weight that holds W_Q, W_K or W_V and its rows there; head h owns rows h*D to (h+1)*D of these.

        Here it is the fused `qkv`, which holds one after another.
        """
        size = self.num_heads(attn) * self.head_dim(attn)
        start = size * PROJECTIONS.index(projection)
        return attn.qkv.weight, slice(start, start + size)

    def weights_sha256(self, model: Any) -> str | None:
        """Fingerprint of the global attentions' projections; None where it would say nothing.

        Taken from bfloat16 values, so that a checkpoint gives the same when loaded in float32 or bfloat16.
        Loaded in float16 it was rounded in another place, and offloaded weights cannot be read: None.
        """
        digest = hashlib.sha256()
        attentions = self.global_attentions(model).values()
        held = (self.projection_weight(attn, each)[0] for attn in attentions for each in PROJECTIONS)
        for weight in {id(weight): weight.detach() for weight in held}.values():  # a fused weight once
            if weight.is_meta or weight.dtype == torch.float16:
                return None
            digest.update(weight.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
        return digest.hexdigest()


def has_attributes(owner: object, *names: str) -> bool:
    """Whether the object has all these attributes."""
    return all(hasattr(owner, name) for name in names)


def are_attention_blocks(blocks: object, *more: str) -> bool:
    """Whether this is a non-empty list of blocks whose `attn` has fused projections, norms and `more`."""
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        return False
    names = ("num_heads", "qkv", "q_norm", "k_norm", "proj", *more)
    return all(has_attributes(getattr(block, "attn", None), *names) for block in blocks)


def split_heads(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q and k as their norms return them, and v, each [B, H, T, D]; fused rows are (q k v), head, dim."""
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


def normalize_images(images: Tensor) -> Tensor:
    """Images [..., 3, height, width] in [0, 1] with the mean and deviation of ImageNet taken out."""
    mean, deviation = images.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return (images - mean) / deviation


def depth_maps(depth: Tensor) -> Tensor:
    """Depth [B, V, height, width] in full precision, of maps with or without a channel axis at the end."""
    return full_precision(depth[..., 0] if depth.ndim == 5 else depth)


def depth_of_points(points: Tensor, extrinsics: Tensor) -> Tensor:
    """Depth [B, V, height, width] of world points in their cameras: the third row of R x + t."""
    row = extrinsics[:, :, 2]
    return torch.einsum("bvc,bvhwc->bvhw", row[..., :3], points) + row[..., 3, None, None]
