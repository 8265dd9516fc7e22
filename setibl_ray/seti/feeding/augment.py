"""Augmentation of whole batches: from uint8 panels to the network's float32 input.

A sample's augmentation is a pure function of its image and its own seed. NumPy turns the seeds into one row
of numbers per sample (`draw`); a compiled kernel then makes two passes over one image at a time, so that it
stays in the processor's cache: gather the pixels (all geometry is one affine map, the flip included) and saturate
them, then change contrast and brightness, which need the panels' means.

The kernel uses no fast-math, so every floating-point operation is rounded as in NumPy. It runs on one thread without
the interpreter lock; callers use several threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numba
import numpy as np
from scipy.special import ndtri

from setibl_ray.core import randomness
from setibl_ray.seti.cadence import PANEL_SHAPE
from setibl_ray.seti.config import Augment
from setibl_ray.seti.kernels import compiled

MIN_ZOOM = 0.1  # without a limit, a normal draw may give a zoom of 0 or less


class Draws(NamedTuple):
    """What the kernel does to each of n samples."""

    affine: np.ndarray
    """(n, 6) float64: pixel (r, c) is taken from row a0 r + a1 c + a2, column a3 r + a4 c + a5."""
    saturation: np.ndarray
    """(n,) float32 factor of a channel's distance to the pixel's largest channel; 1 changes nothing."""
    contrast: np.ndarray
    """(n,) float64 factor about each channel's mean; 1 changes nothing."""
    brightness: np.ndarray
    """(n,) float64 offset on the [0, 1] scale."""
    squares: np.ndarray
    """(n, count, 4) int64: first row, end row, first column, end column of each dropout square."""


def draw(seeds: np.ndarray, settings: Augment, image_size: tuple[int, int], *, dropout: bool) -> Draws:
    """Turn seeds into what is done to each sample.

    Every operation uses the uniform draws at fixed positions, so switching one operation off does not change
    those of the others:

      0 rotation, 1 shear, 2 zoom along time, 3 zoom along frequency, 4 shift along time, 5 shift along
      frequency (these as normals); 6 flip, 7 saturation, 8 contrast, 9 brightness, 10 whether there is
      dropout, 11 + 2k and 12 + 2k column and row of the centre of square k.

    Args:
      seeds: (n,) uint64, one per sample.
      settings: magnitudes; `strength` multiplies all of them, and the probability of dropout only below 1. A flipped
        cadence is as likely as the cadence, so at any strength but 0 flips have their full probability.
      image_size: (height, width) in pixels.
      dropout: whether dropout squares may be drawn at all (training, not prediction).
    """
    strength = settings.strength
    chance = min(1.0, strength)
    count = settings.dropout_count if dropout else 0
    uniform = randomness.uniforms(seeds, 11 + 2 * count)
    normal = ndtri(uniform[:, :6])

    def symmetric(column: int, magnitude: float) -> np.ndarray:
        return strength * magnitude * (2 * uniform[:, column] - 1)

    affine = _affine(
        rotation=np.deg2rad(strength * settings.rotation * normal[:, 0]),
        shear=np.deg2rad(strength * settings.shear * normal[:, 1]),
        height_zoom=np.maximum(1 + strength * settings.height_zoom * normal[:, 2], MIN_ZOOM),
        width_zoom=np.maximum(1 + strength * settings.width_zoom * normal[:, 3], MIN_ZOOM),
        height_shift=strength * settings.height_shift * image_size[0] * normal[:, 4],
        width_shift=strength * settings.width_shift * image_size[1] * normal[:, 5],
        flip=uniform[:, 6] < settings.flip * (strength > 0),
        image_size=image_size,
    )
    return Draws(
        affine=affine,
        saturation=np.maximum(1 + symmetric(7, settings.saturation), 0).astype(np.float32),
        contrast=np.maximum(1 + symmetric(8, settings.contrast), 0),
        brightness=symmetric(9, settings.brightness),
        squares=_squares(
            centres=uniform[:, 11:].reshape(len(seeds), count, 2),
            side=int(min(1.0, settings.dropout_size * strength) * min(image_size)),
            drawn=uniform[:, 10] < settings.dropout_probability * chance,
            image_size=image_size,
        ),
    )


def _affine(
    *,
    rotation: np.ndarray,
    shear: np.ndarray,
    height_zoom: np.ndarray,
    width_zoom: np.ndarray,
    height_shift: np.ndarray,
    width_shift: np.ndarray,
    flip: np.ndarray,
    image_size: tuple[int, int],
) -> np.ndarray:
    """(n, 6) coefficients of `Draws.affine`; angles (n,) in radians, shifts (n,) in pixels.

    The original notebook's map from output to source: rotation x shear x zoom x shift, on coordinates whose origin
    is the image's centre, the first pointing up along rows and the second right along columns. Three differences:
    angles are those of a panel of 273x256 pixels, whatever the size of the image; the origin is the exact centre,
    where the notebook's whole-number one moves every image by one or two columns; and the kernel takes the nearest
    pixel, where the notebook truncates towards the origin and so doubles its axes.
    """
    height, width = image_size
    middle_row, middle_column = (height - 1) / 2, (width - 1) / 2
    stretch = (height / PANEL_SHAPE[0]) / (width / PANEL_SHAPE[1])
    up_up = np.cos(rotation) / height_zoom
    up_right = (np.cos(rotation) * np.sin(shear) + np.sin(rotation) * np.cos(shear)) / width_zoom * stretch
    right_up = -np.sin(rotation) / height_zoom / stretch
    right_right = (np.cos(rotation) * np.cos(shear) - np.sin(rotation) * np.sin(shear)) / width_zoom
    up, right = middle_row + height_shift, width_shift - middle_column  # of output pixel (0, 0), shifted

    affine = np.empty((len(rotation), 6))
    affine[:, 0] = up_up
    affine[:, 1] = -up_right
    affine[:, 2] = middle_row - up_up * up - up_right * right
    affine[:, 3] = -right_up
    affine[:, 4] = right_right
    affine[:, 5] = middle_column + right_up * up + right_right * right
    # The flip comes after the map, so it is the map at column (width - 1 - c).
    mirrored = affine[flip]
    mirrored[:, (2, 5)] += (width - 1) * mirrored[:, (1, 4)]
    mirrored[:, (1, 4)] *= -1
    affine[flip] = mirrored
    return affine


def _squares(*, centres: np.ndarray, side: int, drawn: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """`Draws.squares` from uniform centres (n, count, 2: column, row) and whether a sample has any (n,)."""
    height, width = image_size
    half = side // 2
    column = (centres[..., 0] * width).astype(np.int64)
    row = (centres[..., 1] * height).astype(np.int64)
    corners = (
        np.maximum(row - half, 0),
        np.minimum(row + half, height),
        np.maximum(column - half, 0),
        np.minimum(column + half, width),
    )
    squares = np.stack(corners, axis=-1)
    squares[~drawn] = 0
    return squares


def augment(
    images: np.ndarray,
    rows: np.ndarray,
    seeds: np.ndarray,
    settings: Augment,
    *,
    dropout: bool,
    scale: tuple[float, float],
    stacked: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Augment some rows of a store of images.

    In order: geometry (one map for all panels of a sample; pixels outside take the border's value), flip,
    saturation, contrast, brightness, dropout. Squares are filled with 0 on the scale of the result: the panel's mean if
    panels are standardised (the notebook's 0, four sigma below it, would be a feature of its own), otherwise the
    notebook's 0. At `strength` 0 the result equals that of `plain` to the bit.

    Args:
      images: (m, H, W, P) uint8, C-contiguous, possibly memory-mapped and read-only.
      rows: (n,) which images, in the order of the result.
      seeds: (n,) uint64, one per result.
      settings: what to do, and how much of it.
      dropout: whether to drop squares, as in training.
      scale: the values of pixels 0 and 255 in the result.
      stacked: lay the panels one below the other instead of side by side as channels.
      out: where to write, C-contiguous; allocated when not given.

    Returns:
      (n, H, W, P) float32, or (n, P * H, W, 1) when stacked.

    Raises:
      IndexError: a row is not in the store.
    """
    _, height, width, panels = images.shape
    result = _result(images, rows, stacked, out)
    draws = draw(seeds, settings, (height, width), dropout=dropout)
    low, high = scale
    compiled_kernel(panels)(
        np.asarray(images).reshape(len(images), height * width * panels),
        np.asarray(rows, np.int64),
        height,
        width,
        *draws,
        (high - low) / 255,
        low,
        stacked,
        result.reshape(len(result), height * width * panels),
    )
    return result


def plain(
    images: np.ndarray,
    rows: np.ndarray,
    scale: tuple[float, float],
    *,
    stacked: bool = False,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Decode rows of a store without augmentation; arguments and result as in `augment`."""
    _, height, width, panels = images.shape
    result = _result(images, rows, stacked, out)
    low, high = scale
    _compiled_decode()(
        np.asarray(images).reshape(len(images), height * width, panels),
        np.asarray(rows, np.int64),
        (high - low) / 255,
        low,
        stacked,
        result.reshape(len(result), height * width * panels),
    )
    return result


def _result(images: np.ndarray, rows: np.ndarray, stacked: bool, out: np.ndarray | None) -> np.ndarray:
    """`out`, or a new array of its shape, after checking that the kernel stays inside `images`."""
    m, height, width, panels = images.shape
    rows = np.asarray(rows)
    if len(rows) and not (rows.min() >= 0 and rows.max() < m):
        raise IndexError(f"rows: expected 0 to {m - 1}, got {rows.min()} to {rows.max()}")
    shape = (len(rows), panels * height, width, 1) if stacked else (len(rows), height, width, panels)
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"out: expected C-contiguous float32 {shape}, got {out.dtype} {out.shape}")
    return out


_images_type = numba.types.Array(numba.uint8, 2, "C", readonly=True)
_pixels_type = numba.types.Array(numba.uint8, 3, "C", readonly=True)
_KERNEL_SIGNATURE = numba.void(
    _images_type,
    numba.int64[::1],
    numba.int64,
    numba.int64,
    numba.float64[:, ::1],
    numba.float32[::1],
    numba.float64[::1],
    numba.float64[::1],
    numba.int64[:, :, ::1],
    numba.float64,
    numba.float64,
    numba.boolean,
    numba.float32[:, ::1],
)
_DECODE_SIGNATURE = numba.void(
    _pixels_type, numba.int64[::1], numba.float64, numba.float64, numba.boolean, numba.float32[:, ::1]
)


@functools.cache
def compiled_kernel(panels: int) -> Callable[..., None]:
    """The kernel for images with this number of panels; a constant, so that loops over them unroll and vectorise.

    The first use on a machine compiles for a few seconds; call it before starting threads that would all wait.
    """

    def kernel(
        images: np.ndarray,
        rows: np.ndarray,
        height: int,
        width: int,
        affine: np.ndarray,
        saturation: np.ndarray,
        contrast: np.ndarray,
        brightness: np.ndarray,
        squares: np.ndarray,
        step: float,
        low: float,
        stacked: bool,
        out: np.ndarray,
    ) -> None:
        line_size = width * panels
        source = np.empty(height * line_size, np.uint8)
        moved = np.empty(line_size, np.uint8)
        scratch = np.empty(height * line_size if stacked else 0, np.float32)
        row_terms = np.empty(width, np.float32)
        column_terms = np.empty(width, np.float32)
        origin = np.empty(width, np.uint32)
        sums = np.empty(line_size, np.int32)
        bias = np.empty(line_size, np.float32)
        last_row = np.float32(height - 1)
        last_column = np.float32(width - 1)
        zero = np.float32(0)

        for sample in range(rows.size):
            image = images[rows[sample]]
            coloured = scratch if stacked else out[sample]
            a = affine[sample]
            still = a[0] == 1 and a[1] == 0 and a[2] == 0 and a[3] == 0 and a[4] == 1 and a[5] == 0
            sums[:] = 0

            # The source is copied first: gathering from pages that are not in the cache yet is slower.
            for i in range(source.size):
                source[i] = image[i]
            for c in range(width):
                row_terms[c] = np.float32(a[1] * c)
                column_terms[c] = np.float32(a[4] * c)
            for r in range(height):
                start = r * line_size
                pixels = source[start : start + line_size]
                if not still:
                    pixels = moved
                    row_base = np.float32(a[0] * r + a[2] + 0.5)
                    column_base = np.float32(a[3] * r + a[5] + 0.5)
                    for c in range(width):
                        y = min(max(row_base + row_terms[c], zero), last_row)
                        x = min(max(column_base + column_terms[c], zero), last_column)
                        origin[c] = np.uint32(
                            (np.int32(y) * np.int32(width) + np.int32(x)) * np.int32(panels)
                        )
                    to = np.uint64(0)
                    for c in range(width):
                        # Unsigned, or each access would first test for a negative index.
                        for k in range(panels):
                            moved[to + np.uint64(k)] = source[origin[c] + np.uint64(k)]
                        to += np.uint64(panels)
                line = coloured[start : start + line_size]
                _saturate(pixels, saturation[sample], panels, line)
                if contrast[sample] != 1:
                    for i in range(line_size):
                        sums[i] += np.int32(line[i] * np.float32(256))

            gain = np.float32(step * contrast[sample])
            for k in range(panels):
                mean = sums[k::panels].sum() / (256.0 * height * width)
                shift = (1 - contrast[sample]) * mean + 255 * brightness[sample]
                bias[k::panels] = np.float32(step * shift + low)

            for r in range(height):
                line = coloured[r * line_size : (r + 1) * line_size]
                for i in range(line_size):
                    line[i] = gain * line[i] + bias[i]
                for square in range(squares.shape[1]):
                    if squares[sample, square, 0] <= r < squares[sample, square, 1]:
                        line[squares[sample, square, 2] * panels : squares[sample, square, 3] * panels] = 0
                if stacked:
                    for k in range(panels):
                        first = (k * height + r) * width
                        for c in range(width):
                            out[sample, first + c] = line[c * panels + k]

    return compiled(kernel, _KERNEL_SIGNATURE)


@numba.njit(inline="always", error_model="numpy")
def _saturate(pixels, factor, panels, line):
    """Write one row of pixels, on the 0 to 255 scale, with their saturation changed, to `line`.

    HSV's value is a pixel's largest channel V, its saturation (V - smallest) / V. Scaling the saturation by
    f, at most to 1, is c -> V - min(f, V / (V - smallest)) * (V - c): three channels need no hue, and the
    same rule works for any number of channels (one channel stays as it is).
    """
    if factor == 1 or panels == 1:
        for i in range(line.size):
            line[i] = np.float32(pixels[i])
        return
    for p in range(line.size // panels):
        largest = np.int32(pixels[p * panels])
        smallest = largest
        for k in range(1, panels):
            largest = max(largest, np.int32(pixels[p * panels + k]))
            smallest = min(smallest, np.int32(pixels[p * panels + k]))
        value = np.float32(largest)
        spread = np.float32(largest - smallest)
        ratio = factor if factor * spread <= value else value / spread
        for k in range(panels):
            line[p * panels + k] = value - ratio * np.float32(largest - np.int32(pixels[p * panels + k]))


@functools.cache
def _compiled_decode() -> Callable[..., None]:
    def decode(
        images: np.ndarray, rows: np.ndarray, step: float, low: float, stacked: bool, out: np.ndarray
    ) -> None:
        gain = np.float32(step)
        bias = np.float32(low)
        _, pixels, panels = images.shape
        for sample in range(rows.size):
            image = images[rows[sample]]
            if stacked:
                for k in range(panels):
                    for p in range(pixels):
                        out[sample, k * pixels + p] = gain * np.float32(image[p, k]) + bias
            else:
                flat = image.reshape(pixels * panels)
                for i in range(flat.size):
                    out[sample, i] = gain * np.float32(flat[i]) + bias

    return compiled(decode, _DECODE_SIGNATURE)
