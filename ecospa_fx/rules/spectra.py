"""Fourier transforms: the transformed axes mix, all others pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ecospa_fx.labels import Value
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.layout_ops import rearrange
from ecospa_fx.rules.registry import rule
from ecospa_fx.rules.windows import spared

_MIXED = "mixed by a Fourier transform"
_WORDS = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")


def _transforms(suffix: str) -> list[str]:
    return [f"aten.fft_{word}{suffix}.default" for word in _WORDS]


def _over(default: Callable[[Call], Sequence[int]]) -> Callable[[Call], Arrays]:
    def flow(call: Call) -> Arrays:
        x, dims = call.value("self"), call.get("dim")
        dims = default(call) if dims is None else dims if isinstance(dims, (list, tuple)) else [dims]
        return spared(call, x, [d % x.rank for d in dims], _MIXED)

    return flow


def _last_or_all(call: Call) -> Sequence[int]:
    """The last axes where sizes are given, else all."""
    sizes = call.get("s")
    return range(-len(sizes), 0) if sizes is not None else range(call.value("self").rank)


rule(*_transforms(""))(_over(lambda call: [-1]))
rule(*(t for t in _transforms("2") if "hfft" not in t))(_over(lambda call: [-2, -1]))
rule(*(t for t in _transforms("n") if "hfft" not in t))(_over(_last_or_all))
rule("aten.fft_fftshift.default", "aten.fft_ifftshift.default")(_over(_last_or_all))


def _framed(call: Call, axes: Sequence[int]) -> Arrays:
    x, window = call.value("self"), call.get("window")
    if isinstance(window, Value):
        call.pin(window.arrays, "a window over time")
    return spared(call, x, [a % x.rank for a in axes], _MIXED)


@rule("aten.stft.default", "aten.stft.center")
def stft(call: Call) -> Arrays:
    """Frequencies and frames in place of the last axis."""
    return rearrange(_framed(call, [-1]), lambda ids: np.expand_dims(ids, -1))


@rule("aten.istft.default")
def istft(call: Call) -> Arrays:
    """A signal in place of frequencies and frames."""
    return rearrange(_framed(call, (-2, -1)), lambda ids: ids[..., 0])
