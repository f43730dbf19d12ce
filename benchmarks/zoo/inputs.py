"""Inputs for any model, guessed from the signature of its forward."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from benchmarks.zoo.configs import sub_configs
from benchmarks.zoo.shrink import HIDDEN, VOCABULARY

Inputs = dict[str, Any]
Candidate = tuple[str, Inputs]

_IMAGE_TOKENS = (
    "image_token_id",
    "image_token_index",
    "image_placeholder_token_id",
    "im_patch_id",
    "media_token_id",
)


def first(config: PreTrainedConfig, *names: str, default: int | None = None) -> Any:
    """The first integer field of these names, sub-configs included."""
    for c in [config, *sub_configs(config)]:
        for name in names:
            value = getattr(c, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
                return value[0]
    return default


class Guesses:
    """Candidate inputs of one model, in a fixed order, with a label each.

    Args:
        model: the model.
        name: its model type.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        config = model.config
        assert isinstance(config, PreTrainedConfig)
        self.model, self.config, self.name = model, config, name
        self.accepted = inspect.signature(model.forward).parameters
        self.main = getattr(model, "main_input_name", "input_ids")
        self.generator = torch.Generator().manual_seed(1)
        self.image = first(config, "image_size", "img_size", "input_size", default=32)
        channels = first(config, "num_channels", "in_channels", "in_chans", default=3)
        self.channels = channels if channels in (1, 3, 4) else 3
        self.mel = first(
            config, "num_mel_bins", "n_mels", "input_feat_per_channel", "feature_size", default=16
        )
        self.patch = first(config, "patch_size", default=8)
        self.flat = self.channels * first(config, "temporal_patch_size", default=1) * self.patch**2

    def __iter__(self) -> Iterator[Candidate]:
        if self.has("input_ids") and self.has("pixel_values"):
            yield from self.image_and_text()
        media = any(self.has(k) for k in ("pixel_values", "input_features", "input_values"))
        if self.has("input_ids") and (self.main == "input_ids" or not media):
            yield from self.texts()
        if self.has("pixel_values") or self.main == "pixel_values":
            yield from self.images()
        if self.has("pixel_values_videos") or self.main == "pixel_values_videos":
            for frames in (first(self.config, "num_frames", default=4), 4, 8, 16):
                yield f"pvv{frames}", {"pixel_values_videos": self.video(frames)}
        if self.has("hidden_states") and self.has("grid_thw"):
            yield "hs+grid", {"hidden_states": self.normal(32, self.flat), "grid_thw": _grid()}
        if self.has("input_features") or self.main == "input_features":
            yield from self.features()
        if self.has("input_values") or self.main == "input_values":
            yield from self.waves()
        yield from self.series_and_states()

    def has(self, name: str) -> bool:
        """Whether forward takes the argument."""
        return name in self.accepted

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def tokens(self, batch: int, length: int) -> Tensor:
        size = max(8, min(first(self.config, "vocab_size", default=VOCABULARY), VOCABULARY))
        return torch.randint(3, max(5, size - 14), (batch, length), generator=self.generator)

    def pixels(self, size: int) -> Tensor:
        return self.normal(2, self.channels, size, size)

    def video(self, frames: int) -> Tensor:
        return self.normal(2, frames, self.channels, self.image, self.image)

    def text(self, length: int) -> Inputs:
        inputs: Inputs = {"input_ids": self.tokens(2, length)}
        if self.has("attention_mask"):
            inputs["attention_mask"] = torch.ones(2, length, dtype=torch.long)
        if self.has("token_type_ids") and self.name == "bert":
            inputs["token_type_ids"] = torch.zeros(2, length, dtype=torch.long)
        if self.has("bbox"):
            inputs["bbox"] = torch.tensor([1, 2, 5, 9]).repeat(2, length, 1)
        return {**inputs, **self.decoder()}

    def decoder(self) -> Inputs:
        return {"decoder_input_ids": self.tokens(2, 6)} if self.has("decoder_input_ids") else {}

    def texts(self) -> Iterator[Candidate]:
        for length in (8, 16, 32, 64):
            yield f"text{length}", self.text(length)
            yield f"text{length}-nomask", _without_mask(self.text(length))
        yield "ids only", {"input_ids": self.tokens(2, 8)}

    def image_and_text(self) -> Iterator[Candidate]:
        """Placeholders in the text stand for the image's features."""
        picture = self.picture()
        token = next((t for n in _IMAGE_TOKENS if isinstance(t := getattr(self.config, n, None), int)), None)
        if token is None:
            yield "image+text", {**self.text(8), **picture}
            yield "image+text-nomask", {**_without_mask(self.text(8)), **picture}
            return
        counted = self.count_features(picture)
        for count in [*([counted] if counted else []), 4, 16]:
            places = torch.full((2, count), token)
            ids = torch.cat([self.tokens(2, 3), places, self.tokens(2, 5)], 1)
            inputs: Inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            for name in ("mm_token_type_ids", "token_type_ids"):
                if self.has(name):
                    inputs[name] = (ids == token).long()
            yield f"image+text({count})", {**inputs, **picture, **self.decoder()}
            if inputs.pop("token_type_ids", None) is not None:
                yield f"image+text({count})b", {**inputs, **picture, **self.decoder()}

    def picture(self) -> Inputs:
        if self.has("image_grid_thw"):
            return {"pixel_values": self.normal(32, self.flat), "image_grid_thw": _grid()}
        sizes = (
            {"image_sizes": torch.tensor([[self.image, self.image]] * 2)} if self.has("image_sizes") else {}
        )
        return {"pixel_values": self.pixels(self.image), **sizes}

    def count_features(self, picture: Inputs) -> int | None:
        """Features per image, where the model tells."""
        try:
            with torch.no_grad():
                found = self.model.get_image_features(**picture)  # type: ignore[operator]
            if not isinstance(found, (Tensor, list, tuple)):
                found = getattr(found, "pooler_output", found)
            if isinstance(found, (list, tuple)):
                found = torch.cat([x.reshape(-1, x.shape[-1]) for x in found])
            return int(found.reshape(-1, found.shape[-1]).shape[0]) // 2
        except Exception:
            return None

    def images(self) -> Iterator[Candidate]:
        for size in (self.image, 32, 64, 128, 224):
            inputs = {"pixel_values": self.pixels(size), **self.decoder()}
            yield f"pixel{size}", inputs
            if self.has("input_ids"):
                yield f"pixel{size}+text", {**self.text(8), **inputs}
        for frames in (first(self.config, "num_frames", default=4), 4, 8, 16):
            yield f"video{frames}x{self.image}", {"pixel_values": self.video(frames)}
        grids = {k: _grid() for k in ("grid_thw", "image_grid_thw") if self.has(k)}
        yield "flatpatch", {"pixel_values": self.normal(32, self.flat), **grids}
        patches = self.normal(2, 16, self.channels * self.patch**2)
        yield (
            "naflex",
            {
                "pixel_values": patches,
                "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
                "spatial_shapes": torch.tensor([[4, 4]] * 2),
            },
        )

    def features(self) -> Iterator[Candidate]:
        mel, length = self.mel, 2 * first(self.config, "max_source_positions", default=32)
        for shape in [(2, mel, length), (2, 64, mel), (2, length, mel), (2, 1, 64, mel), (2, mel, 128),
                      (2, 1, 128, mel), (2, mel, 3000)]:  # fmt: skip
            inputs = {"input_features": self.normal(*shape), **self.decoder()}
            yield f"feat{shape}", inputs
            if self.has("attention_mask") and not self.has("input_ids"):
                frames = max(shape[1:]) if len(shape) == 3 else shape[2]
                yield (
                    f"feat{shape}+mask",
                    {**inputs, "attention_mask": torch.ones(2, frames, dtype=torch.long)},
                )
            if self.has("input_features_mask"):
                mask = torch.ones(2, shape[1], dtype=torch.long)
                yield f"feat{shape}+fmask", {**inputs, "input_features_mask": mask}
            if self.has("input_ids"):
                yield f"feat{shape}+text", {**self.text(8), **inputs}

    def waves(self) -> Iterator[Candidate]:
        sounds = [(2, 3200), (2, 1, 3200), (2, 16000), (2, 1, 16000)]
        for shape in [*sounds, (2, 128, self.mel), (2, 1024, 128), (2, 64, self.mel)]:
            inputs = {"input_values": self.normal(*shape) * 0.1, **self.decoder()}
            if self.has("decoder_input_values"):
                inputs["decoder_input_values"] = self.normal(2, 8, self.mel)
            yield f"wave{shape}", inputs
            if self.has("input_ids"):
                yield f"wave{shape}+text", {**self.text(8), **inputs}

    def series_and_states(self) -> Iterator[Candidate]:
        if self.has("past_values"):
            yield from self.series()
        if self.main == "inputs" or self.has("inputs"):
            yield "inputs-ids", {"inputs": self.tokens(2, 16)}
        if self.has("inputs_embeds"):
            width = first(self.config, "hidden_size", "d_model", "encoder_hidden_size", default=HIDDEN)
            yield "embeds", {"inputs_embeds": self.normal(2, 8, width)}
        if self.has("hidden_states"):
            width = first(self.config, "hidden_size", "d_model", default=HIDDEN)
            yield "hidden_states", {"hidden_states": self.normal(2, 8, width)}
        if self.has("audio_codes"):
            yield "codes", {"audio_codes": torch.randint(0, 8, (2, 2, 8), generator=self.generator)}
        for name in ("spectrogram", "input_spectrogram"):
            if self.has(name):
                yield name, {name: self.normal(2, 16, self.mel)}

    def series(self) -> Iterator[Candidate]:
        length = first(self.config, "context_length", default=16)
        horizon = first(self.config, "prediction_length", default=4)
        channels = first(self.config, "num_input_channels", default=1) or 1
        past = length + max(getattr(self.config, "lags_sequence", None) or [0])
        yield "ts-patch", {"past_values": self.normal(2, length, channels)}
        width = first(self.config, "num_time_features", default=0)
        inputs = {
            "past_values": self.normal(2, past),
            "past_time_features": self.normal(2, past, width),
            "past_observed_mask": torch.ones(2, past),
        }
        yield "ts", inputs
        future = {
            "future_values": self.normal(2, horizon),
            "future_time_features": self.normal(2, horizon, width),
        }
        yield "ts2", {**inputs, **future}
        yield "ts3", {"past_values": self.normal(2, length)}


def _grid() -> Tensor:
    return torch.tensor([[1, 4, 4]] * 2)


def _without_mask(inputs: Inputs) -> Inputs:
    return {k: v for k, v in inputs.items() if k != "attention_mask"}
