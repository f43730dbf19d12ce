"""Sample calls of convolutions: dense, depthwise, grouped and transposed."""

from ecospa_fx.testing import activation, sample, weight

IMAGE = activation(2, 5, 9, 8, on=1)


def convolutions(rank: int) -> tuple:
    """The same calls for one, two and three spatial axes."""
    window, size = (3, 2, 1)[:rank], (9, 8, 4)[:rank]
    x, w = activation(2, 5, *size, on=1), weight(4, 5, *window)
    channels = activation(2, 6, *size, on=1)
    return (
        sample(x, w),
        sample(x, w, weight(4)),
        sample(activation(5, *size, on=0), w, weight(4)),
        sample(activation(2, 5, *size), w, weight(4)),
        sample(activation(2, 5, *size, on=2), w),
        sample(channels, weight(6, 1, *window), groups=6),
        sample(channels, weight(6, 1, *window), weight(6), groups=6),
        sample(channels, weight(12, 1, *window), weight(12), groups=6),
        sample(activation(6, *size, on=0), weight(6, 1, *window), weight(6), groups=6),
        sample(activation(2, 6, *size), weight(6, 1, *window), groups=6, frozen=True),
        sample(channels, weight(4, 3, *window), weight(4), groups=2),
        sample(activation(2, 6, *size), weight(4, 3, *window), weight(4), groups=2),
        sample(channels, activation(4, 3, *window, on=0), groups=2, frozen=True),
    )


def transposed(rank: int) -> tuple:
    """The same for transposed convolutions."""
    window, size = (3, 2, 1)[:rank], (9, 8, 4)[:rank]
    return (
        sample(activation(2, 5, *size, on=1), weight(5, 4, *window)),
        sample(activation(2, 5, *size, on=1), weight(5, 4, *window), weight(4)),
        sample(activation(2, 5, *size), weight(5, 4, *window), weight(4)),
        sample(activation(2, 6, *size, on=1), weight(6, 1, *window), groups=6),
        sample(activation(2, 6, *size, on=1), weight(6, 1, *window), weight(6), groups=6),
        sample(activation(2, 6, *size, on=1), weight(6, 2, *window), groups=6, frozen=True),
    )


HEADS = activation(2, 3, 7, 6, on=[1, (1, 3)])
APART = (
    sample(HEADS, weight(3, 1, 5, 1), None, [1, 1], [2, 0], groups=3),
    sample(activation(2, 3, 7, 6, on=3), weight(3, 1, 5, 1), None, [1, 2], [2, 0], groups=3, frozen=True),
    sample(activation(2, 3, 7, 6, on=3), weight(3, 1, 5, 1), None, [1, 1], [2, 1], groups=3, frozen=True),
)
SAMPLES = {
    "aten.conv1d.default": convolutions(1),
    "aten.conv2d.default": (*convolutions(2), *APART),
    "aten.conv3d.default": convolutions(3),
    "aten.conv1d.padding": (sample(activation(2, 5, 9, on=1), weight(4, 5, 3), weight(4), [1], "same"),),
    "aten.conv2d.padding": (sample(IMAGE, weight(4, 5, 3, 3), weight(4), [1, 1], "same"),),
    "aten.conv3d.padding": (
        sample(activation(2, 5, 6, 4, 3, on=1), weight(4, 5, 3, 3, 1), weight(4), [1, 1, 1], "same"),
    ),
    "aten.conv_transpose1d.default": transposed(1),
    "aten.conv_transpose2d.input": transposed(2),
    "aten.conv_transpose3d.input": transposed(3),
}
