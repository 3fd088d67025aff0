"""Multi-crop augmentation: two global and several local views of one image, as uint8 until the batch is made.

The operations and their order are those of DINO and DINOv2 (Oquab et al. 2023, appendix B): random resized crop, flip,
colour jitter, grayscale, blur, solarize. An image is decoded once for all its crops, and shrunk by the JPEG decoder
itself when every crop has pixels to spare.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from components.images.decode import DecodeLimits, decode
from components.images.jpeg import plain_header
from components.learning import color
from components.learning.crops import CropBox, Draws, Image, reduction, resize, resize_opencv, sample_box, shrink_box
from components.params import CHANGES, Factor, Share, Strict

if TYPE_CHECKING:
    import torch

ORDERS = tuple(itertools.permutations(range(4)))  # of brightness, contrast, saturation, hue


class JitterParams(Strict):
    """Colour jitter: factors uniform in 1 +- strength (hue: a turn uniform in +- strength), in random order."""

    effect: ClassVar = CHANGES
    probability: float = Field(0.8, ge=0, le=1)
    brightness: float = Field(0.4, ge=0, le=1)
    contrast: float = Field(0.4, ge=0, le=1)
    saturation: float = Field(0.2, ge=0, le=1)
    hue: float = Field(0.1, ge=0, le=0.5)


class AugmentParams(Strict):
    """Everything the views depend on. Lists of three hold (first global crop, second global crop, local crops).

    ``blur`` says plainly how often a view is blurred: ``[0.0, 0.9, 0.5]`` is what the released DINOv2 models saw (their
    code passes the complement of what its configuration names), ``[1.0, 0.1, 0.5]`` is BYOL's and DINO's paper's.
    """

    effect: ClassVar = CHANGES
    global_size: int = Field(224, ge=8, le=8192)  # pixels
    local_size: int = Field(98, ge=8, le=8192)
    locals: int = Field(8, ge=0, le=1000)  # local crops an image; 0: only the two global ones
    global_scale: tuple[Share, Share] = (0.32, 1.0)  # share of the image's area
    local_scale: tuple[Share, Share] = (0.05, 0.32)
    ratio: tuple[Factor, Factor] = (3 / 4, 4 / 3)  # width over height, log-uniform
    resize: Literal["antialiased", "opencv"] = "antialiased"  # Pillow's bicubic; OpenCV's is faster but aliases
    hflip: float = Field(0.5, ge=0, le=1)
    vflip: float = Field(0.0, ge=0, le=1)  # for pictures without an up and a down: cells, tissue, the ground from above
    rot90: float = Field(0.0, ge=0, le=1)  # how often a view takes a quarter turn, left or right
    jitter: JitterParams = JitterParams()
    grayscale: float = Field(0.2, ge=0, le=1)
    blur: tuple[Share, Share, Share] = (0.0, 0.9, 0.5)
    blur_kernel: int = Field(9, ge=1, le=65_536)  # taps, odd
    blur_sigma: tuple[Factor, Factor] = (0.1, 2.0)  # pixels of the crop, uniform
    solarize: tuple[Share, Share, Share] = (0.0, 0.2, 0.0)
    solarize_threshold: int = Field(128, ge=0, le=255)
    color_on: Literal["auto", "worker", "device"] = "auto"  # where jitter, blur and solarize run; auto: on a GPU if any
    gray: bool = False  # treat every image as gray: a third of the work, and nothing lost where images are gray
    mean: tuple[Share, Share, Share] = (0.485, 0.456, 0.406)  # of ImageNet, RGB in 0 ... 1
    std: tuple[Factor, Factor, Factor] = (0.229, 0.224, 0.225)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("global_scale", "local_scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: expected 0 < low <= high, found [{low}, {high}]")
        for name in ("global_scale", "local_scale"):
            if getattr(self, name)[1] > 1:
                raise ValueError(f"{name}: a crop cannot exceed the image; the upper end must be at most 1")
        for name in ("blur", "solarize"):
            if not all(0 <= p <= 1 for p in getattr(self, name)):
                raise ValueError(f"{name}: probabilities must lie in 0 ... 1")
        if self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel: must be odd, found {self.blur_kernel}")
        sides = [self.global_size, self.global_size, *[self.local_size] * min(self.locals, 1)]
        blurred = [side for side, p in zip(sides, self.blur, strict=False) if p > 0]
        if blurred and self.blur_kernel // 2 >= min(blurred):
            raise ValueError(
                f"blur_kernel: {self.blur_kernel} taps reach beyond a crop of {min(blurred)} px and its mirrored edges;"
                f" at most {2 * min(blurred) - 1}"
            )
        if min(self.std) <= 0:
            raise ValueError("std: must be positive")
        return self


class ViewDraw(NamedTuple):
    """All that chance decides about one view after its crop: drawn first, then applied in a worker or on the device."""

    quarter_turn: int = 0  # -1 clockwise, 1 counter-clockwise
    horizontal: bool = False
    vertical: bool = False
    order: int = -1  # of the jitters, a number of ORDERS; -1: none
    factors: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 0.0)  # brightness, contrast, saturation, turn of hue
    gray: bool = False
    sigma: float = 0.0  # of the blur, pixels; 0: none
    solarize: bool = False

    def color(self) -> tuple[float, ...]:
        """The part that may wait for the device: order, the four factors, gray, sigma, solarize."""
        return (self.order, *self.factors, self.gray, self.sigma, self.solarize)


class Sample(NamedTuple):
    """The views of one image: uint8, planar. C is 1 when the parameters say ``gray``, else 3."""

    globals: npt.NDArray[np.uint8]  # [2, C, G, G]
    locals: npt.NDArray[np.uint8]  # [L, C, l, l]
    colors: npt.NDArray[np.float32] | None = None  # [2 + L, 8]: ViewDraw.color() where it is left to the device
    anchors: npt.NDArray[np.uint8] | None = None  # [2, C, S, S]: what the global crops show, larger and uncoloured


class MultiCrop:
    """Bytes of an image, or its pixels, to a :class:`Sample`. Equal generators give equal views.

    With ``defer_color`` the views are cropped, resized and flipped only; ``Sample.colors`` says what remains for
    :func:`components.learning.color_batch.apply_colors`. The draws are the same. ``anchors`` asks for the global crops'
    sections once more, with sides of so many pixels (the gram teacher's).

    Raises (when called):
        components.images.decode.DecodeError: the bytes are no whole image within ``limits``.
    """

    def __init__(
        self,
        params: AugmentParams,
        limits: DecodeLimits | None = None,
        defer_color: bool = False,
        anchors: int | None = None,
    ) -> None:
        self.params, self.defer_color, self.anchors = params, defer_color, anchors
        self.limits = limits or DecodeLimits()
        self._resize = resize if params.resize == "antialiased" else resize_opencv

    def __call__(self, source: bytes | Image, generator: np.random.Generator) -> Sample:
        params, draws = self.params, Draws(generator)
        channels = 1 if params.gray else 3
        sides = [max(params.global_size, self.anchors or 0)] * 2 + [params.local_size] * params.locals
        scales = [params.global_scale] * 2 + [params.local_scale] * params.locals
        if isinstance(source, np.ndarray):
            height, width = source.shape[:2]
            boxes = [sample_box(width, height, scale, params.ratio, draws) for scale in scales]
            image = source
        else:
            image, boxes = self._decode(source, sides, scales, draws)
        if params.gray:
            image = color.grayscale(image)
        sample = Sample(
            np.empty((2, channels, params.global_size, params.global_size), np.uint8),
            np.empty((params.locals, channels, params.local_size, params.local_size), np.uint8),
            anchors=np.empty((2, channels, self.anchors, self.anchors), np.uint8) if self.anchors else None,
        )
        colors: list[tuple[float, ...]] = []
        for i, box in enumerate(boxes):
            crop = image[box.top : box.top + box.height, box.left : box.left + box.width]
            drawn = draw_view(min(i, 2), params, draws)
            view = turn(self._resize(crop, params.global_size if i < 2 else params.local_size), drawn)
            if not self.defer_color:
                view = recolor(view, drawn, params)
            colors.append(drawn.color())
            _planar(view, sample.globals[i] if i < 2 else sample.locals[i - 2])
            if sample.anchors is not None and self.anchors and i < 2:
                _planar(turn(self._resize(crop, self.anchors), drawn), sample.anchors[i])
        return sample._replace(colors=np.array(colors, np.float32)) if self.defer_color else sample

    def _decode(
        self, data: bytes, sides: list[int], scales: list[tuple[float, float]], draws: Draws
    ) -> tuple[Image, list[CropBox]]:
        """Pixels, perhaps shrunk, and the boxes on them."""
        header = plain_header(data, self.limits)
        if header is not None:
            import simplejpeg

            height, width, space = header
            boxes = [sample_box(width, height, scale, self.params.ratio, draws) for scale in scales]
            factor = reduction(list(zip(boxes, sides, strict=True)))
            try:
                image = simplejpeg.decode_jpeg(
                    data,
                    colorspace=space,
                    min_height=-(-height // factor) if factor > 1 else 0,
                    min_width=-(-width // factor) if factor > 1 else 0,
                )
            except ValueError:
                image = decode(data, self.limits)  # its verdict: lenient where that is safe, else the reason
            image = image[..., 0] if image.shape[-1] == 1 else image
            return image, [shrink_box(box, image.shape[1], image.shape[0], width, height) for box in boxes]
        image = decode(data, self.limits)
        height, width = image.shape[:2]
        return image, [sample_box(width, height, scale, self.params.ratio, draws) for scale in scales]


def colors_on_device(params: AugmentParams, device: torch.device) -> bool:
    """Whether colour operations run on ``device`` in batches; ``auto`` says yes for anything but a CPU."""
    return params.color_on == "device" or (params.color_on == "auto" and device.type != "cpu")


def draw_view(kind: int, params: AugmentParams, draws: Draws) -> ViewDraw:
    """Everything random after the crop, for a view of ``kind`` 0 (first global), 1 (second global) or 2 (local)."""
    quarter_turn = (1 if draws.chance(0.5) else -1) if draws.chance(params.rot90) else 0
    horizontal, vertical = draws.chance(params.hflip), draws.chance(params.vflip)
    order, factors = -1, (1.0, 1.0, 1.0, 0.0)
    if draws.chance(params.jitter.probability):
        jitter = params.jitter
        b, c, s = (draws.uniform(1 - s, 1 + s) for s in (jitter.brightness, jitter.contrast, jitter.saturation))
        factors = (b, c, s, draws.uniform(-jitter.hue, jitter.hue))
        order = draws.below(len(ORDERS))
    gray = draws.chance(params.grayscale)
    sigma = draws.uniform(*params.blur_sigma) if draws.chance(params.blur[kind]) else 0.0
    return ViewDraw(
        quarter_turn, horizontal, vertical, order, factors, gray, sigma, draws.chance(params.solarize[kind])
    )


def turn(view: Image, drawn: ViewDraw) -> Image:
    """Quarter turn and flips."""
    import cv2

    if drawn.quarter_turn:
        way = cv2.ROTATE_90_COUNTERCLOCKWISE if drawn.quarter_turn > 0 else cv2.ROTATE_90_CLOCKWISE
        view = cv2.rotate(view, way)  # type: ignore[assignment]
    if drawn.horizontal or drawn.vertical:
        code = -1 if drawn.horizontal and drawn.vertical else 1 if drawn.horizontal else 0
        view = cv2.flip(view, code)  # type: ignore[assignment]
    return view


def recolor(view: Image, drawn: ViewDraw, params: AugmentParams) -> Image:
    """Jitter (those of no strength are left out), grayscale, blur, solarize."""
    if drawn.order >= 0:
        jitter = params.jitter
        strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        order = [which for which in ORDERS[drawn.order] if strengths[which] > 0]
        view = color.jitter(view, order, list(drawn.factors))
    if drawn.gray:
        view = color.grayscale(view)
    if drawn.sigma:
        view = color.blur(view, params.blur_kernel, drawn.sigma)
    if drawn.solarize:
        view = color.solarize(view, params.solarize_threshold)
    return view


def _planar(view: Image, out: npt.NDArray[np.uint8]) -> None:
    """Write [H, W] or [H, W, 3] into ``out`` [C, H, W]; a gray view fills every channel."""
    import cv2

    if view.ndim == 2:
        out[:] = view
    else:
        cv2.split(view, [out[0], out[1], out[2]])
