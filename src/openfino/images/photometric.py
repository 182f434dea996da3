"""Photometric operations: parameters drawn on the workers, applied in batches on the device.

``natural`` (DINOv3): colour jitter, grayscale, blur, solarise, with the nominal blur probabilities (the
authors' code inverts them: 0 and 0.9 for the global crops). The jitter has a fixed order: brightness,
contrast, saturation, hue. ``overhead``: colour jitter and blur. ``fluorescence`` (FINO, HPA): contrast and
brightness of each channel, more contrast variation of the protein channel, one other channel dropped.

Images of other than three channels have no saturation, hue, gray or solarise: ``natural`` and ``overhead``
then vary brightness, contrast and blur.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Preset = Literal["natural", "fluorescence", "overhead"]
CropKind = Literal["global_1", "global_2", "local"]
Parameters = Mapping[str, Tensor]

_JITTER_PROBABILITY = 0.8
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 0.4, 0.4, 0.2, 0.1
_GRAY_PROBABILITY = 0.2
_BLUR_PROBABILITY = {"global_1": 1.0, "global_2": 0.1, "local": 0.5}
_BLUR_RADIUS = 4
_SOLARISE_PROBABILITY = {"global_1": 0.0, "global_2": 0.2, "local": 0.0}
_SOLARISE_THRESHOLD = 128 / 255

_CHANNEL_SIGMA, _CHANNEL_FLOOR = 0.2, 0.5
# The paper names the next two operations without their strengths; these are ours.
_PROTEIN_CONTRAST = (0.5, 1.5)
_DROP_PROBABILITY = 0.25

_LUMA = (0.299, 0.587, 0.114)
# Elements per piece on a CPU: an operation's input and output then stay in the cache.
_CPU_PIECE = 1 << 17


def draw_parameters(
    rng: np.random.Generator,
    preset: Preset,
    kind: CropKind,
    channels: Sequence[str],
    protein: int | None,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
) -> dict[str, np.ndarray]:
    """Draw what happens to one crop.

    Args:
        rng: the image's own generator.
        preset: the recipe's ``views.preset``.
        kind: the two global crops differ in blur and solarise.
        channels: names of the C channels.
        protein: index of the channel that is never dropped and whose contrast varies; ``fluorescence`` only.
        blur_sigma: weakest and strongest blur, pixels; not in ``fluorescence``.

    Returns:
        float32 arrays. ``fluorescence``: ``contrast`` [C], ``brightness`` [C] (factors), ``keep`` [C] (0 or
        1). Others: ``jitter`` (0 or 1), ``brightness``, ``contrast`` (factors), ``blur_sigma`` (pixels, 0 =
        none), and for three channels ``saturation`` (factor), ``hue`` (turns); ``natural`` with three
        channels also ``gray`` and ``solarise`` (0 or 1). All scalars.
    """
    if preset == "fluorescence":
        return _draw_fluorescence(rng, len(channels), protein)
    u = rng.random(9).tolist()
    drawn: dict[str, float] = {
        "jitter": float(u[0] < _JITTER_PROBABILITY),
        "brightness": 1 + _BRIGHTNESS * (2 * u[1] - 1),
        "contrast": 1 + _CONTRAST * (2 * u[2] - 1),
        "blur_sigma": 0.0,
    }
    if u[3] < _BLUR_PROBABILITY[kind]:
        drawn["blur_sigma"] = blur_sigma[0] + u[4] * (blur_sigma[1] - blur_sigma[0])
    if len(channels) == 3:
        drawn["saturation"] = 1 + _SATURATION * (2 * u[5] - 1)
        drawn["hue"] = _HUE * (2 * u[6] - 1)
        if preset == "natural":
            drawn["gray"] = float(u[7] < _GRAY_PROBABILITY)
            drawn["solarise"] = float(u[8] < _SOLARISE_PROBABILITY[kind])
    return {name: np.asarray(value, dtype=np.float32) for name, value in drawn.items()}


def _draw_fluorescence(rng: np.random.Generator, channels: int, protein: int | None) -> dict[str, np.ndarray]:
    contrast, brightness = np.maximum(
        _CHANNEL_FLOOR, 1 + _CHANNEL_SIGMA * rng.standard_normal((2, channels), dtype=np.float32)
    )
    u_protein, u_drop, u_which = rng.random(3).tolist()
    if protein is not None:
        contrast[protein] *= _PROTEIN_CONTRAST[0] + u_protein * (_PROTEIN_CONTRAST[1] - _PROTEIN_CONTRAST[0])
    keep = np.ones(channels, dtype=np.float32)
    droppable = [channel for channel in range(channels) if channel != protein]
    # An image of one channel would be empty without it.
    if channels > 1 and u_drop < _DROP_PROBABILITY:
        keep[droppable[int(u_which * len(droppable))]] = 0
    return {"contrast": contrast, "brightness": brightness, "keep": keep}


def apply_photometric(crops: Tensor, parameters: Parameters, preset: Preset) -> Tensor:
    """Apply drawn parameters to crops -> float32; the input is left as it is, values stay in [0, 1].

    An operation that a crop did not draw leaves it unchanged to the bit.

    Args:
        crops: [..., C, H, W], uint8, or float32 in [0, 1].
        parameters: what :func:`draw_parameters` gave for each crop, stacked to [...] or [..., C].
        preset: the preset that drew them.
    """
    images = crops.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    if crops.dtype == torch.uint8:
        images.div_(255)
    if crops.numel() == 0:
        return images
    lead = crops.ndim - 3
    images = images.view(-1, *crops.shape[-3:])
    flat = {name: value.reshape(-1, *value.shape[lead:]) for name, value in parameters.items()}
    if preset == "fluorescence":
        images = _per_channel(images, flat["contrast"], flat["brightness"], flat["keep"])
        return images.view(crops.shape)
    if "hue" in flat:
        colour = [flat[name] for name in ("brightness", "contrast", "saturation", "hue")]
        images = _where(flat["jitter"] > 0, images, _jitter_colour, *colour)
    else:
        images = _where(flat["jitter"] > 0, images, _jitter, flat["brightness"], flat["contrast"])
    if "gray" in flat:
        images = _where(flat["gray"] > 0, images, _to_gray)
    images = _where(flat["blur_sigma"] > 0, images, gaussian_blur, flat["blur_sigma"])
    if "solarise" in flat:
        images = _where(flat["solarise"] > 0, images, _solarise)
    return images.view(crops.shape)


def _where(active: Tensor, images: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """``operation(images, *parameters)`` where ``active`` [N], the images [N, C, H, W] elsewhere.

    A CPU computes only the active images, in pieces that fit its cache. A GPU computes all of them: choosing
    would make it wait for the host.
    """
    if images.device.type != "cpu":
        return torch.where(active.view(-1, 1, 1, 1), operation(images, *parameters), images)
    piece = max(1, _CPU_PIECE // images[0].numel())
    chosen = active.nonzero().squeeze(1)
    for index in chosen.split(piece) if chosen.numel() else ():
        changed = operation(images.index_select(0, index), *(values[index] for values in parameters))
        images.index_copy_(0, index, changed)
    return images


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _per_channel(images: Tensor, contrast: Tensor, brightness: Tensor, keep: Tensor) -> Tensor:
    """Contrast about the channel's mean, brightness and dropping as one affine map per channel."""
    mean = images.mean(dim=(-2, -1))
    slope = contrast * brightness * keep
    offset = mean * (1 - contrast) * brightness * keep
    return images.mul_(slope[..., None, None]).add_(offset[..., None, None]).clamp_(0.0, 1.0)


def _jitter(images: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    images = images.mul(_column(brightness)).clamp_(max=1.0)
    mean = (luma(images) if images.shape[1] == 3 else images).mean(dim=(1, 2, 3), keepdim=True)
    return images.mul_(_column(contrast)).add_(mean * (1 - _column(contrast))).clamp_(0.0, 1.0)


def _jitter_colour(
    images: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    images = _jitter(images, brightness, contrast)
    images = torch.lerp(luma(images), images, _column(saturation)).clamp_(0.0, 1.0)
    return shift_hue(images, hue)


def luma(images: Tensor) -> Tensor:
    """Gray value of RGB images [N, 3, H, W] -> [N, 1, H, W] (ITU-R BT.601)."""
    gray = images[:, :1] * _LUMA[0]
    gray.add_(images[:, 1:2], alpha=_LUMA[1])
    return gray.add_(images[:, 2:], alpha=_LUMA[2])


def _to_gray(images: Tensor) -> Tensor:
    return luma(images).expand_as(images)


def _solarise(images: Tensor) -> Tensor:
    # |1 - x| where bright, |0 - x| elsewhere: a few times faster than torch.where on a CPU.
    bright = (images >= _SOLARISE_THRESHOLD).to(images.dtype)
    return bright.sub_(images).abs_()


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV; saturation and value stay.

    Args:
        images: [N, 3, H, W] RGB in [0, 1].
        shift: [N], in turns, within [-1/6, 1/6].
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    chroma = value - images.amin(1)
    scale = chroma.clamp(min=1e-8).reciprocal_()
    # Hue in sixths of a turn, [-1, 5]: the last of these whose channel is the largest. Products with 0 and 1
    # take the place of torch.where, which is several times slower on a CPU.
    hue = (red - green).mul_(scale).add_(4)
    for channel, numerator, offset in ((green, blue - red, 2), (red, green - blue, 0)):
        largest = channel.eq(value).to(images.dtype)
        hue.add_(numerator.mul_(scale).add_(offset).sub_(hue).mul_(largest))
    hue.add_(6 * shift.view(-1, 1, 1))
    out = torch.empty_like(images)
    # A channel falls below the value with its distance from its complement on the circle of six: cyan (3) for
    # red, magenta (5, or -1) for green, yellow (1) for blue.
    for index, complement in enumerate((3, 5, 1)):
        distance = (hue - complement).abs_().sub_(3).abs_().neg_().add_(3)
        drop = distance.neg_().add_(2).clamp_(0.0, 1.0)
        torch.addcmul(value, chroma, drop, value=-1, out=out[:, index])
    return out


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image with its own Gaussian: kernel of 9, separable, reflected at the border.

    Args:
        images: [N, C, H, W].
        sigma: [N] in pixels, positive.
    """
    for dim in (-2, -1):
        images = _blur_axis(images, sigma, dim)
    return images


def _blur_axis(images: Tensor, sigma: Tensor, dim: int) -> Tensor:
    count, channels, height, width = images.shape
    radius = _BLUR_RADIUS
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-6)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    padding = (0, 0, radius, radius) if dim == -2 else (radius, radius, 0, 0)
    shape = (-1, 1, 2 * radius + 1, 1) if dim == -2 else (-1, 1, 1, 2 * radius + 1)
    padded = F.pad(images.reshape(1, count * channels, height, width), padding, mode="reflect")
    return F.conv2d(padded, kernel.view(shape), groups=count * channels).view_as(images)
