"""Size and training of the copy-detection network, apart from the code they configure: reading them needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from components.params import Factor, JpegQuality, Share, Strict

Arch = Literal["resnet10", "resnet18", "resnet50", "resnext101_32x4d", "resnext101_32x8d"]


class NetworkParams(Strict):
    """The network. The defaults are small enough to train on a CPU; SSCD's are beside them."""

    side: int = Field(64, ge=16, le=8192)  # pixels of the squashed input (SSCD: 224 to train on)
    arch: Arch = "resnet10"  # SSCD: resnet50; its large model: resnext101_32x4d
    # Channels after the stem; they double at each later stage (SSCD: 64). Below 8, convolutions of torch 2.13 (oneDNN)
    # on a CPU with AVX2 alone overwrote memory in their backward pass.
    width: int = Field(16, ge=8, le=65_536)
    stem: Literal["imagenet", "small"] = "small"  # 7x7 and max pooling, stride 4 (SSCD); or one 3x3, stride 2
    dim: int = Field(128, ge=8, le=65_536)  # of the descriptor (SSCD: 512; large: 1,024)
    gem: float = Field(3.0, gt=0, le=1000.0)  # power of the generalised mean; fixed, for learning it diverges (SSCD)
    # Pixels less ImageNet's mean over its spread (SSCD), or each picture's own: brightness is then no part of it
    normalise: Literal["imagenet", "picture"] = "picture"


class OverlayParams(Strict):
    """Text and emoji laid over a picture (SSCD, "advanced" augmentations)."""

    text: float = Field(0.1, ge=0, le=1)  # probability of a line of text
    text_size: tuple[Share, Share] = (0.1, 0.3)  # its height, relative to the picture's
    text_opacity: tuple[Share, Share] = (0.1, 1.0)
    emoji: float = Field(0.2, ge=0, le=1)  # probability of an emoji
    emoji_size: tuple[Share, Share] = (0.1, 0.5)  # its side, relative to the picture's height
    emoji_opacity: tuple[Share, Share] = (0.7, 1.0)


class EditParams(Strict):
    """How an edited view is drawn, in this order; the defaults are SSCD's "advanced" augmentations."""

    flip: float = Field(0.5, ge=0, le=1)  # probability of a mirror image
    quarter_turn: float = Field(0.05, ge=0, le=1)  # probability of a turn by 90, 180 or 270 degrees
    overlays: OverlayParams = OverlayParams()
    turn: float = Field(0.05, ge=0, le=1)  # probability of a turn by any angle, corners filled with gray
    crop_scale: tuple[Share, Share] = (0.08, 1.0)  # share of the area that a view keeps
    crop_ratio: tuple[Factor, Factor] = (0.75, 1.3333333)  # width over height of what it keeps
    jitter: float = Field(0.8, ge=0, le=1)  # probability of changed colours
    brightness: float = Field(0.8, ge=0, le=1)  # factors lie within 1 - x ... 1 + x
    contrast: float = Field(0.8, ge=0, le=1)
    saturation: float = Field(0.8, ge=0, le=1)
    hue: float = Field(0.2, ge=0, le=0.5)  # turns of the colour circle, either way
    gray: float = Field(0.2, ge=0, le=1)  # probability of losing colour
    blur: float = Field(0.5, ge=0, le=1)  # probability of a Gaussian blur
    blur_sigma: tuple[Factor, Factor] = (1.0, 5.0)  # pixels at side 224; scaled to the network's side
    jpeg: float = Field(0.2, ge=0, le=1)  # probability of JPEG artefacts
    jpeg_quality: tuple[JpegQuality, JpegQuality] = (0, 100)

    @model_validator(mode="after")
    def _ordered(self) -> EditParams:
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "jpeg_quality"):
            low, high = getattr(self, name)
            if low > high or (name != "jpeg_quality" and low <= 0) or (name == "crop_scale" and high > 1):
                raise ValueError(f"{name} must be a range from low to high, given {low} to {high}")
        return self


class MixParams(Strict):
    """Mixing views of different images within a batch, row by row (SSCD: 0.05, half of it mixup, half cutmix)."""

    share: float = Field(0.05, ge=0, le=1)  # probability that a view is mixed with another image's
    cutmix: float = Field(0.5, ge=0, le=1)  # of those, pasted as a box rather than blended
    alpha: float = Field(2.0, gt=0, le=1000.0)  # the blend's weight is drawn from Beta(alpha, alpha)


class OptimizerParams(Strict):
    """AdamW suits small batches; LARS is SSCD's, for its batch of 4,096."""

    kind: Literal["adamw", "lars"] = "adamw"
    lr: float = Field(2e-3, gt=0, le=10.0)  # at the end of the warm-up (SSCD: 0.3 x batch / 256 with LARS)
    weight_decay: float = Field(1e-4, ge=0, le=10.0)  # SSCD: 1e-6
    momentum: float = Field(0.9, ge=0, lt=1)  # LARS
    trust: float = Field(0.001, gt=0, le=10.0)  # LARS: step relative to a layer's norm
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the steps, linear from 0; then a cosine to 0 (SSCD: 5 of 100)


class DescriptorTrainingParams(Strict):
    """How long and how."""

    images: int = Field(20_000, ge=2, le=10**12)  # of the pool, at most, that the network learns from
    # Pictures are decoded once into squashed ones on disk, or anew for every view: a million at 336 px take 339 GB
    decode: Literal["once", "each_view"] = "once"
    steps: int = Field(400, ge=1, le=10**12)  # SSCD: 100 epochs
    batch: int = Field(128, ge=2, le=1_000_000)  # images a step, two views each (SSCD: 4,096)
    micro_batch: int | None = Field(
        None, ge=2, le=1_000_000
    )  # views through the network at a time; null: all of a step's
    optimizer: OptimizerParams = OptimizerParams()
    temperature: float = Field(0.05, gt=0, le=10.0)
    entropy: float = Field(10.0, ge=0, le=1000.0)  # lambda; SSCD: 30 at batch 4,096, and advises 10 to begin with
    mix: MixParams = MixParams()
    save_every: int = Field(100, ge=1, le=1_000_000)  # steps between checkpoints, from which a stopped run carries on
    workers: int = Field(1, ge=1, le=4096)  # threads that draw views; the result does not depend on it
    device: Literal["auto", "cpu", "cuda"] = "auto"
