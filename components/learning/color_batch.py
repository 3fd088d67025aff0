"""Colour jitter, grayscale, blur and solarize of a whole batch at once, on the device that trains.

The same draws and the same Pillow operations as :mod:`components.learning.color` applies in a worker view by view, in
float32 on levels 0 ... 255 that are rounded after each operation as 8-bit images would be. With it, workers only
decode, crop and resize, which is what costs them least (DINOv2, appendix B, lists the operations).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from components.learning.augment import ORDERS, AugmentParams
from components.learning.color import LUMA

WHOLE = 1e-3  # added before a truncation, so that a product meant to be a whole number stays it


def apply_colors(images: Tensor, colors: Tensor, params: AugmentParams, device: torch.device | str) -> Tensor:
    """What :class:`~components.learning.augment.MultiCrop` left to do, for N views of one size.

    Args:
        images: uint8 ``[N, C, H, W]``, C 3 or 1 (gray: hue and saturation change nothing).
        colors: float32 ``[N, 8]`` on the CPU, rows of ``ViewDraw.color()``; which views an operation is for is
            looked up there, so that the device is never waited for.
        params: those the views were drawn with.
        device: where to work.

    Returns:
        float32 ``[N, C, H, W]`` of whole levels 0 ... 255 on ``device``.
    """
    x = images.to(device, non_blocking=True).float()
    orders, factors = colors[:, 0].long(), colors[:, 1:5]
    _jitter(x, orders, factors, params)
    for rows, _ in _chosen(x, colors[:, 5] > 0):
        x[rows] = gray(x[rows]).expand(-1, x.shape[1], -1, -1)
    for rows, sigmas in _chosen(x, colors[:, 6] > 0, colors[:, 6]):
        x[rows] = blur(x[rows], params.blur_kernel, sigmas)
    for rows, _ in _chosen(x, colors[:, 7] > 0):
        part = x[rows]
        x[rows] = torch.where(part >= params.solarize_threshold, 255 - part, part)
    return x


def _jitter(x: Tensor, orders: Tensor, factors: Tensor, params: AugmentParams) -> None:
    """The four jitters on ``x`` in place, each view in its own order: place after place, operation after operation."""
    jitter = params.jitter
    strengths = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    operations = (brightness, contrast, saturation, turn_hue)
    table = torch.tensor(ORDERS)[orders.clamp(min=0)]  # [N, 4]: which operation comes when
    for place in range(4):
        for which in range(4):
            if strengths[which] == 0 or (x.shape[1] == 1 and which >= 2):
                continue
            due = (orders >= 0) & (table[:, place] == which)
            for rows, amount in _chosen(x, due, factors[:, which]):
                x[rows] = operations[which](x[rows], amount[:, None, None, None])


def _chosen(x: Tensor, due: Tensor, amounts: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """The numbers of the views that are due, and their amounts, on ``x``'s device; nothing where none is."""
    rows = due.nonzero()[:, 0]
    if not len(rows):
        return []
    chosen = torch.zeros(len(rows)) if amounts is None else amounts[rows]
    return [(rows.to(x.device, non_blocking=True), chosen.to(x.device, non_blocking=True))]


def gray(x: Tensor) -> Tensor:
    """Luma of ``x`` ``[N, C, H, W]`` to the nearest level, ``[N, 1, H, W]``."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue + 0.5).floor().unsqueeze(1)


def blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """``other + factor * (x - other)``, clipped and truncated as Pillow does it."""
    return (other + factor * (x - other) + WHOLE).clamp(0, 255).floor()


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with black."""
    return blend(x, torch.zeros((), device=x.device), factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the view's mean luma, to the nearest level."""
    mean = gray(x).mean((1, 2, 3), keepdim=True)
    return blend(x, (mean + 0.5).floor(), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the view in gray."""
    return blend(x, gray(x), factor)


def turn_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of RGB by ``turn`` of a circle, through hue and saturation of 8 bits as in Pillow's HSV images."""
    value, which = x.max(1)
    span = value - x.min(1).values
    safe = span.clamp(min=1)
    red, green, blue = x.unbind(1)
    sixths = torch.where(
        which == 0, (green - blue) / safe, torch.where(which == 1, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    hue = ((sixths / 6).remainder(1) * 255).floor()
    saturated = (span / value.clamp(min=1) * 255).floor()
    steps = (turn[:, 0] * 255).trunc()
    sextant = (hue + steps).remainder(256) * 6 / 255
    base = sextant.floor()
    part, s = sextant - base, saturated / 255
    low = (value * (1 - s)).round()
    falling = (value * (1 - s * part)).round()
    rising = (value * (1 - s * (1 - part))).round()
    sector = base.long().remainder(6)
    channels = []
    for order in (  # of red, green, blue in the six sectors
        (value, falling, low, low, rising, value),
        (rising, value, value, falling, low, low),
        (low, low, rising, value, value, falling),
    ):
        channels.append(torch.stack(order).gather(0, sector[None])[0])
    return torch.stack(channels, 1)


def blur(x: Tensor, kernel: int, sigmas: Tensor) -> Tensor:
    """Gaussian of ``kernel`` taps and ``sigmas`` ``[N]`` pixels, edges mirrored without repeating the edge pixel."""
    half = kernel // 2
    at = torch.arange(-half, half + 1, device=x.device, dtype=torch.float32)
    taps = torch.exp(-0.5 * (at / sigmas[:, None]) ** 2)
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(x.shape[1], 0)  # [N*C, kernel]
    planes = F.pad(x, [half] * 4, mode="reflect").flatten(0, 1)[None]  # [1, N*C, H, W]: a group a plane
    planes = F.conv2d(planes, taps[:, None, :, None], groups=len(taps))
    planes = F.conv2d(planes, taps[:, None, None, :], groups=len(taps))
    return planes[0].view_as(x).round()
