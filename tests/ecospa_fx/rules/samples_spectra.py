"""Sample calls of Fourier transforms."""

import torch

from ecospa_fx.testing import activation, sample

X = activation(2, 8, 6, on=2)
MATRIX = activation(2, 3, 8, 6, on=1)
WAVE = activation(3, 16, on=0)
SPECTRUM = activation(3, 5, 9, on=0, kind="complex")
FRAMES = (8, 4, 8, torch.ones(8, dtype=torch.float64))
ONE = (sample(X, None, 1), sample(X, frozen=True), sample(MATRIX))
TWO = (sample(MATRIX), sample(X, None, [0, 1]), sample(X, frozen=True))
MANY = (sample(X, None, [1]), sample(MATRIX, [4, 4]), sample(X, frozen=True))
SHIFT = (sample(X, [1]), sample(X, 1), sample(X, frozen=True))

SAMPLES = (
    {f"aten.fft_{n}.default": ONE for n in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")}
    | {f"aten.fft_{n}2.default": TWO for n in ("fft", "ifft", "rfft", "irfft")}
    | {f"aten.fft_{n}n.default": MANY for n in ("fft", "ifft", "rfft", "irfft")}
    | {f"aten.fft_{n}.default": SHIFT for n in ("fftshift", "ifftshift")}
    | {
        "aten.stft.default": (
            sample(WAVE, *FRAMES, False, True, True),
            sample(activation(3, 16, on=1), *FRAMES, False, True, True, frozen=True),
        ),
        "aten.stft.center": (
            sample(WAVE, *FRAMES, True, "reflect", False, True, True),
            sample(activation(16, on=0), *FRAMES, True, "reflect", False, True, True, frozen=True),
        ),
        "aten.istft.default": (sample(SPECTRUM, *FRAMES),),
    }
)
