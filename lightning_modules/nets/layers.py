"""Small layers that several networks share."""

from torch import Tensor, nn

from lightning_modules.ops import linear

__all__ = ["PatchEmbed"]


class PatchEmbed(nn.Module):
    """Cuts images or clips into patches and projects each to a vector.

    Patches do not overlap, so the convolution is a matrix product over unfolded patches; it is computed as one, which
    on a CPU is faster than the convolution. The weight keeps the convolution's shape and official key ``proj.weight``.

    Args:
        embed_dim: width of a token.
        patch_size: side of a patch in pixels.
        tubelet_size: frames per token; None makes a 2-D embedding for still images.
        in_channels: channels of the input.
    """

    def __init__(
        self, embed_dim: int, patch_size: int = 16, tubelet_size: int | None = 1, in_channels: int = 3
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        if tubelet_size is None:
            self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)
        else:
            kernel = (tubelet_size, patch_size, patch_size)
            self.proj = nn.Conv3d(in_channels, embed_dim, kernel, stride=kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W), or (B, C, H, W) where ``tubelet_size`` is None -> (B, T', H'W', embed_dim), raster order."""
        if self.tubelet_size is None:
            x = x.unsqueeze(2)
        batch, channels, frames, height, width = x.shape
        t, p = self.tubelet_size or 1, self.patch_size
        x = x.reshape(batch, channels, frames // t, t, height // p, p, width // p, p)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(
            batch, frames // t, (height // p) * (width // p), channels * t * p * p
        )
        return linear(x, self.proj.weight.flatten(1), self.proj.bias)
