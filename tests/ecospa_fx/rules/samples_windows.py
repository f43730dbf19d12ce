"""Sample calls of windows over positions: pools, resampling, padding, patches."""

import torch

from ecospa_fx.testing import activation, sample

LINE, IMAGE, FILM = (
    activation(2, 5, 8, on=1),
    activation(2, 5, 8, 6, on=1),
    activation(2, 5, 8, 6, 4, on=1),
)
ALONG = activation(2, 5, 8, 6, on=3)
X = (LINE, IMAGE, FILM)


def pools(name: str) -> dict:
    """One, two and three spatial axes."""
    return {f"aten.{name}{n}d.default": (sample(X[n - 1], [2] * n),) for n in (1, 2, 3)}


def resampled(name: str, rank: int, *flags: bool) -> dict:
    """To twice the size."""
    return {f"aten.{name}{rank}d.vec": (sample(X[rank - 1], None, *flags, [2.0] * rank),)}


PLACES = (torch.arange(4).view(4, 1) * 12 + torch.arange(3) * 2).expand(2, 5, 4, 3).contiguous()
GRID = activation(2, 3, 4, 2)

SAMPLES = {
    **pools("avg_pool"),
    **pools("adaptive_avg_pool"),
    **pools("max_pool"),
    **resampled("upsample_nearest", 1),
    **resampled("upsample_nearest", 2),
    **resampled("upsample_nearest", 3),
    **resampled("_upsample_nearest_exact", 2),
    **resampled("upsample_linear", 1, False),
    **resampled("upsample_bilinear", 2, False),
    **resampled("upsample_bicubic", 2, False),
    **resampled("upsample_trilinear", 3, False),
    "aten._upsample_bilinear2d_aa.vec": (sample(IMAGE, [5, 7], False, None),),
    "aten._upsample_bicubic2d_aa.vec": (sample(IMAGE, [5, 7], False, None),),
    "aten.max_pool1d_with_indices.default": (sample(LINE, [2]),),
    "aten.adaptive_max_pool3d.default": (sample(FILM, [2, 2, 2]),),
    "aten.max_unpool2d.default": (
        sample(activation(2, 5, 4, 3, on=1), PLACES, [8, 6]),
        sample(activation(2, 5, 4, 3, on=2), PLACES, [8, 6], frozen=True),
    ),
    "aten.max_unpool3d.default": (
        sample(activation(2, 5, 1, 4, 3, on=1), PLACES.unsqueeze(2), [1, 8, 6], [1, 2, 2], [0, 0, 0]),
    ),
    "aten.max_pool2d_with_indices.default": (sample(IMAGE, [2, 2]), sample(ALONG, [2, 2], frozen=True)),
    "aten.max_pool3d_with_indices.default": (sample(FILM, [2, 2, 2]),),
    "aten.adaptive_max_pool1d.default": (sample(LINE, [3]),),
    "aten.adaptive_max_pool2d.default": (sample(IMAGE, [3, 2]),),
    "aten.grid_sampler.default": (
        sample(IMAGE, GRID, 0, 0, False),
        sample(ALONG, GRID, 0, 0, False, frozen=True),
    ),
    "aten.grid_sampler_2d.default": (sample(IMAGE, GRID, 0, 0, False),),
    "aten.grid_sampler_3d.default": (sample(FILM, activation(2, 3, 4, 2, 3), 0, 0, False),),
    "aten.pad.default": (
        sample(LINE, [1, 2]),
        sample(LINE, [1, 2], "constant", 3.0),
        sample(LINE, [1, 2], "reflect"),
        sample(activation(2, 5, 8, on=2), [0, 0, 1, 0]),
        sample(activation(2, 5, 8, on=2), [1, 0]),
        sample(activation(2, 5, 8, on=2), [1, 2], "constant", 3.0),
        sample(activation(2, 3, 8, on=[(1, 2)]), [1, 2]),
        sample(activation(2, 5, 8, on=2), [1, 0], "reflect", frozen=True),
        sample(activation(2, 5, 8, on=2), [-1, 0], frozen=True),
    ),
    "aten.constant_pad_nd.default": (sample(LINE, [1, 2], 3.0),),
    "aten.unfold.default": (sample(LINE, 2, 3, 2), sample(LINE, 1, 3, 2, frozen=True)),
    "aten.im2col.default": (sample(IMAGE, [2, 3], [1, 1], [0, 0], [2, 3]),),
    "aten.col2im.default": (sample(activation(2, 30, 8, on=1), [8, 6], [2, 3], [1, 1], [0, 0], [2, 3]),),
    "aten.pixel_shuffle.default": (sample(activation(2, 12, 5, 3, on=1), 2),),
    "aten.pixel_unshuffle.default": (sample(IMAGE, 2),),
    "aten.glu.default": (
        sample(activation(2, 7, 10, on=2)),
        sample(activation(2, 10, 7, on=1), 1),
        sample(activation(2, 3, 7, 10, on=[(1, 3)])),
    ),
}
