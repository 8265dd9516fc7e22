"""The kernel against a per-pixel NumPy version, against TensorFlow, and against the original notebook's arithmetic."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy import stats

from setibl_ray.core import randomness
from setibl_ray.seti.config import Augment
from setibl_ray.seti.feeding import augment as module
from setibl_ray.seti.feeding.augment import augment, draw, plain

OFF = {
    "strength": 1,
    "rotation": 0,
    "shear": 0,
    "height_zoom": 0,
    "width_zoom": 0,
    "height_shift": 0,
    "width_shift": 0,
    "flip": 0,
    "saturation": 0,
    "contrast": 0,
    "brightness": 0,
    "dropout_probability": 0,
}
EVERYTHING = Augment(strength=1, rotation=10, shear=5, height_shift=0.15, width_shift=0.15)
UNIT = (0.0, 1.0)


def only(**magnitudes: float) -> Augment:
    return Augment(**{**OFF, **magnitudes})  # type: ignore[arg-type]


def some_images(n: int, height: int, width: int, panels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, panels), dtype=np.uint8)


def some_seeds(n: int, key: int = 0) -> np.ndarray:
    return randomness.sample_seeds(key, np.arange(n, dtype=np.uint64))


def run(
    images: np.ndarray, settings: Augment, seeds: np.ndarray | None = None, **options: object
) -> np.ndarray:
    arguments = {"dropout": True, "scale": UNIT} | options
    seeds = some_seeds(len(images)) if seeds is None else seeds
    return augment(images, np.arange(len(images)), seeds, settings, **arguments)  # type: ignore[arg-type]


def normals_and_uniforms(seeds: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    uniform = randomness.uniforms(seeds, 11 + 2 * count)
    return stats.norm.ppf(uniform[:, :6]), uniform


def naive_map(
    normal: np.ndarray, settings: Augment, height: int, width: int, panel: tuple[int, int] = (273, 256)
) -> np.ndarray:
    """(H, W, 2) float64 source row and column of each output pixel, by the original notebook's 3x3 matrices.

    These work on a panel of `panel` pixels, whatever size the image was resized to.
    """
    strength = settings.strength
    rotation = np.deg2rad(strength * settings.rotation * normal[0])
    shear = np.deg2rad(strength * settings.shear * normal[1])
    zooms = [
        max(0.1, 1 + strength * s * z)
        for s, z in zip((settings.height_zoom, settings.width_zoom), normal[2:])
    ]
    shifts = [
        strength * part * side * z
        for part, side, z in zip((settings.height_shift, settings.width_shift), panel, normal[4:])
    ]
    step = np.array(panel) / (height, width)
    c1, s1, c2, s2 = np.cos(rotation), np.sin(rotation), np.cos(shear), np.sin(shear)
    matrix = (
        np.array([[c1, s1, 0], [-s1, c1, 0], [0, 0, 1]])
        @ np.array([[1, s2, 0], [0, c2, 0], [0, 0, 1]])
        @ np.diag([1 / zooms[0], 1 / zooms[1], 1])
        @ np.array([[1, 0, shifts[0]], [0, 1, shifts[1]], [0, 0, 1]])
    )
    source = np.empty((height, width, 2))
    for row in range(height):
        for column in range(width):
            away = np.array([(height - 1) / 2 - row, column - (width - 1) / 2]) * step
            up, right = (matrix @ [*away, 1])[:2] / step
            source[row, column] = (height - 1) / 2 - up, (width - 1) / 2 + right
    return source


def naive(image: np.ndarray, normal: np.ndarray, uniform: np.ndarray, settings: Augment) -> np.ndarray:
    """One image, step by step in float64 on the [0, 1] scale; NaN where rounding may go either way."""
    height, width, panels = image.shape
    strength, chance = settings.strength, min(1, settings.strength)
    source = naive_map(normal, settings, height, width)
    nearest = np.floor(source + 0.5).astype(int)
    result = image[nearest[..., 0].clip(0, height - 1), nearest[..., 1].clip(0, width - 1)] / 255
    unsure = (np.abs(source - np.floor(source) - 0.5) < 1e-3).any(-1)
    if strength and uniform[6] < settings.flip:
        result, unsure = result[:, ::-1].copy(), unsure[:, ::-1].copy()

    factor = max(0, 1 + strength * settings.saturation * (2 * uniform[7] - 1))
    for pixel in result.reshape(-1, panels):
        value, spread = pixel.max(), pixel.max() - pixel.min()
        if spread > 0:
            pixel[:] = value - min(factor, value / spread) * (value - pixel)
    contrast = max(0, 1 + strength * settings.contrast * (2 * uniform[8] - 1))
    mean = result.mean((0, 1))
    result = (result - mean) * contrast + mean
    result = result + strength * settings.brightness * (2 * uniform[9] - 1)

    if uniform[10] < settings.dropout_probability * chance:
        side = int(min(1, strength * settings.dropout_size) * min(height, width))
        for square in range(settings.dropout_count):
            x, y = int(uniform[11 + 2 * square] * width), int(uniform[12 + 2 * square] * height)
            rows = slice(max(0, y - side // 2), min(height, y + side // 2))
            columns = slice(max(0, x - side // 2), min(width, x + side // 2))
            result[rows, columns] = 0
            unsure[rows, columns] = False
    result[unsure] = np.nan
    return result


def assert_like_naive(images: np.ndarray, settings: Augment, seeds: np.ndarray) -> None:
    got = run(images, settings, seeds)
    normal, uniform = normals_and_uniforms(seeds, settings.dropout_count)
    for position, image in enumerate(images):
        expected = naive(image, normal[position], uniform[position], settings)
        sure = ~np.isnan(expected)
        # An unsure pixel may move the mean that contrast turns about, by its share of the image; and the kernel adds
        # that mean up in whole 256ths of a grey level.
        tolerance = 1e-5 + settings.strength * settings.contrast * ((~sure).mean() + 1 / (255 * 256))
        np.testing.assert_allclose(got[position][sure], expected[sure], atol=tolerance)


@pytest.mark.parametrize("panels", [1, 3, 6])
@pytest.mark.parametrize("shape", [(23, 20), (16, 16), (9, 31)])
@pytest.mark.parametrize(
    "settings",
    [
        only(rotation=20),
        only(shear=15),
        only(height_zoom=0.4),
        only(width_zoom=0.4),
        only(height_shift=0.2),
        only(width_shift=0.2),
        only(flip=0.5),
        only(saturation=0.9),
        only(contrast=0.8),
        only(brightness=0.3),
        only(dropout_probability=0.7, dropout_size=0.3),
        EVERYTHING,
        EVERYTHING.model_copy(update={"strength": 2.5}),
    ],
    ids=lambda settings: "+".join(name for name in OFF if getattr(settings, name)),
)
def test_each_operation_and_all_together_match_a_loop_over_pixels(
    settings: Augment, shape: tuple[int, int], panels: int
) -> None:
    assert_like_naive(some_images(4, *shape, panels), settings, some_seeds(4))


@hypothesis_settings(max_examples=40)
@given(
    st.tuples(st.integers(4, 30), st.integers(4, 30), st.sampled_from([1, 2, 3, 6])),
    st.integers(0, 2**63),
    st.fixed_dictionaries(
        {
            "strength": st.floats(0, 3),
            "rotation": st.floats(0, 40),
            "shear": st.floats(0, 20),
            "height_zoom": st.floats(0, 0.5),
            "width_zoom": st.floats(0, 0.5),
            "width_shift": st.floats(0, 0.5),
            "saturation": st.floats(0, 2),
            "contrast": st.floats(0, 1),
            "brightness": st.floats(0, 1),
            "dropout_count": st.integers(0, 9),
            "dropout_size": st.floats(0, 1),
        }
    ),
)
def test_any_shape_and_magnitude_matches_a_loop_over_pixels(
    shape: tuple[int, int, int], seed: int, magnitudes: dict[str, float]
) -> None:
    assert_like_naive(some_images(1, *shape, seed=seed % 99), Augment(**magnitudes), some_seeds(1, seed))  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0.0, 0.7, 1.0, 1.3, 40.0])
def test_saturation_is_tensorflows(factor: float) -> None:
    images = some_images(1, 40, 40, 3)
    images[0, :2] = [[[0, 0, 0]], [[255, 255, 255]]]
    result = np.empty(images[0].size, np.float32)
    module._saturate(images.reshape(-1), np.float32(factor), 3, result)
    expected = tf.image.adjust_saturation(images.astype(np.float32) / 255, factor).numpy()
    np.testing.assert_allclose(result.reshape(images.shape) / 255, expected, atol=2e-6)


def test_contrast_and_brightness_are_tensorflows() -> None:
    images = some_images(8, 31, 30, 3)
    settings = only(contrast=0.9, brightness=0.4)
    draws = draw(some_seeds(8), settings, (31, 30), dropout=True)
    for image, contrast, brightness, got in zip(
        images, draws.contrast, draws.brightness, run(images, settings)
    ):
        expected = tf.image.adjust_contrast(image.astype(np.float32) / 255, contrast)
        expected = tf.image.adjust_brightness(expected, brightness).numpy()
        np.testing.assert_allclose(got, expected, atol=2e-6)


def test_flip_is_tensorflows() -> None:
    images = some_images(3, 9, 8, 3)
    expected = tf.image.flip_left_right(images).numpy() / 255
    np.testing.assert_allclose(run(images, only(flip=1)), expected, atol=1e-6)


def test_geometry_is_tensorflows_projective_transform() -> None:
    images = some_images(6, 41, 36, 3)
    settings = only(rotation=20, shear=10, height_zoom=0.2, width_zoom=0.2, height_shift=0.1, width_shift=0.1)
    draws = draw(some_seeds(6), settings, (41, 36), dropout=True)
    for image, affine, got in zip(images, draws.affine, run(images, settings)):
        row_r, row_c, row_0, column_r, column_c, column_0 = affine
        expected = tf.raw_ops.ImageProjectiveTransformV3(
            images=image[None].astype(np.float32),
            transforms=np.array([[column_c, column_r, column_0, row_c, row_r, row_0, 0, 0]], np.float32),
            output_shape=image.shape[:2],
            fill_value=0.0,
            interpolation="NEAREST",
            fill_mode="NEAREST",
        )[0].numpy()
        assert (np.abs(got * 255 - expected).max(-1) > 0.01).mean() < 0.002  # ties of rounding


def test_geometry_is_the_seeds_but_for_its_centre_and_its_truncation() -> None:
    """The original notebook's coordinates: about its whole-number centre, ours are the same up to rounding."""
    settings = only(rotation=20, shear=10, height_zoom=0.2, width_zoom=0.2, height_shift=0.1, width_shift=0.1)
    normal, _ = normals_and_uniforms(some_seeds(5), 0)
    size = 33
    for numbers in normal:
        source = naive_map(numbers, settings, size, size, panel=(size, size))
        # The seed: rows count up from size // 2, columns from -(size // 2 + 1); its origin is pixel (16, 17).
        rotation, shear = np.deg2rad(20 * numbers[0]), np.deg2rad(10 * numbers[1])
        zoom = 1 + 0.2 * numbers[2:4]
        turn = np.array([[np.cos(rotation), np.sin(rotation)], [-np.sin(rotation), np.cos(rotation)]])
        skew = np.array([[1, np.sin(shear)], [0, np.cos(shear)]])
        up = np.repeat(np.arange(size // 2, -size // 2, -1), size)
        right = np.tile(np.arange(-size // 2, size // 2), size)
        at = turn @ skew @ (np.stack([up + 3.3 * numbers[4], right + 3.3 * numbers[5]]) / zoom[:, None])
        seeds_source = np.stack([size // 2 - at[0], size // 2 - 1 + at[1]], -1).reshape(size, size, 2)
        # Its output column c sits at right = c - 17, ours at c - 16; and it reads two columns further left.
        np.testing.assert_allclose(seeds_source[:, 1:, 0], source[:, :-1, 0], atol=1e-9)
        np.testing.assert_allclose(seeds_source[:, 1:, 1] + 1, source[:, :-1, 1], atol=1e-9)


def test_geometry_is_the_same_at_any_size_and_the_notebooks_at_its_own() -> None:
    settings = only(
        rotation=20, shear=10, height_zoom=0.2, width_zoom=0.2, height_shift=0.0293, width_shift=0.03125
    )
    sizes = ((273, 256), (91, 85), (32, 256))
    affine = {size: draw(some_seeds(2000), settings, size, dropout=True).affine for size in sizes}

    def source(size: tuple[int, int], point: tuple[float, float]) -> np.ndarray:
        """(n, 2) where a point comes from, both as fractions of the panel from its middle."""
        middle = (np.array(size) - 1) / 2
        matrix = affine[size].reshape(-1, 2, 3)
        return (matrix @ [*(middle + np.array(point) * size), 1] - middle) / size

    for point in ((0, 0), (0.3, 0.2), (-0.4, 0.1), (0.2, -0.3)):
        for size in sizes[1:]:
            np.testing.assert_allclose(source(size, point), source(sizes[0], point), atol=1e-9)
    shifts = draw(
        some_seeds(2000),
        Augment(strength=1, shear=0, height_zoom=0, width_zoom=0, flip=0),
        sizes[0],
        dropout=True,
    )
    np.testing.assert_allclose(shifts.affine[:, [2, 5]].std(axis=0), 8, rtol=0.05)


@pytest.mark.parametrize("scale", [UNIT, (-4.0, 8.0)])
@pytest.mark.parametrize("panels", [1, 3, 6])
@pytest.mark.parametrize("stacked", [False, True])
def test_strength_zero_and_all_off_are_plain_decoding(
    scale: tuple[float, float], panels: int, stacked: bool
) -> None:
    images = some_images(3, 14, 11, panels)
    rows = np.array([2, 0, 2])
    decoded = plain(images, rows, scale, stacked=stacked)
    for settings in (Augment(strength=0, rotation=30), only()):
        for dropout in (True, False):
            got = augment(
                images, rows, some_seeds(3), settings, dropout=dropout, scale=scale, stacked=stacked
            )
            assert got.tobytes() == decoded.tobytes()
    if not stacked:
        low, high = scale
        np.testing.assert_allclose(decoded, low + images[rows] / 255 * (high - low), atol=2e-6)


@pytest.mark.parametrize("panels", [3, 6])
def test_stacking_lays_the_same_pixels_below_each_other(panels: int) -> None:
    images = some_images(4, 17, 12, panels)
    side_by_side = run(images, EVERYTHING)
    expected = side_by_side.transpose(0, 3, 1, 2).reshape(4, panels * 17, 12, 1)
    assert np.array_equal(run(images, EVERYTHING, stacked=True), expected)


def test_dropout_is_the_mean_of_standardised_panels_and_only_for_training() -> None:
    images = np.full((50, 40, 40, 3), 200, np.uint8)
    settings = only(dropout_probability=0.5, dropout_size=0.2, dropout_count=2)
    dropped = (run(images, settings, scale=(-4.0, 8.0)) == 0).all(-1).mean((1, 2))
    assert 10 < (dropped > 0).sum() < 40
    assert dropped.max() <= 2 * 8 * 8 / 1600
    assert not (run(images, settings, dropout=False) == 0).any()


def test_a_samples_bytes_do_not_depend_on_its_batch() -> None:
    images, seeds = some_images(12, 33, 28, 3), some_seeds(12)
    together = run(images, EVERYTHING, seeds)
    order = np.array([5, 3, 5, 11])
    apart = augment(images, order, seeds[order], EVERYTHING, dropout=True, scale=UNIT)
    assert apart.tobytes() == together[order].tobytes()


def test_a_read_only_store_and_a_given_array_are_fine_and_a_wrong_row_is_not() -> None:
    images = some_images(3, 8, 8, 3)
    images.flags.writeable = False
    out = np.empty((1, 8, 8, 3), np.float32)
    assert plain(images, np.array([2]), UNIT, out=out) is out
    for row in (-1, 3):
        with pytest.raises(IndexError, match="rows: expected 0 to 2"):
            plain(images, np.array([row]), UNIT)
    with pytest.raises(ValueError, match="out: expected"):
        plain(images, np.array([1]), UNIT, out=out[..., :2])


def test_draws_have_the_distributions_that_the_settings_promise() -> None:
    settings = Augment(strength=1, dropout_size=0.25)
    height, width = 200, 100
    draws = draw(some_seeds(20_000), settings, (height, width), dropout=True)
    flipped = draws.affine[:, 4] < 0
    assert abs(flipped.mean() - 0.5) < 0.02
    zoom = np.cos(np.deg2rad(2)) / np.abs(draws.affine[:, 4])  # the shear's cosine is 1 within 0.1 %
    assert abs(zoom.mean() - 1) < 0.01
    assert abs(zoom.std() - 0.125) < 0.005
    for values, low, high in (
        (draws.saturation, 0.7, 1.3),
        (draws.contrast, 0.8, 1.2),
        (draws.brightness, -0.1, 0.1),
    ):
        assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 1e-4
    has_squares = draws.squares.any((1, 2))
    assert abs(has_squares.mean() - 0.5) < 0.02
    squares = draws.squares[has_squares].reshape(-1, 4)
    inside = (squares[:, 0] > 0) & (squares[:, 1] < height) & (squares[:, 2] > 0) & (squares[:, 3] < width)
    assert (squares[inside][:, 1] - squares[inside][:, 0] == 24).all()  # int(0.25 x 100), halved and doubled
    assert squares[:, [0, 2]].min() == 0
    assert squares[:, 1].max() == height
    assert squares[:, 3].max() == width


def test_strength_scales_every_magnitude() -> None:
    seeds = some_seeds(500)
    settings = only(width_shift=0.1, saturation=0.3, contrast=0.2, brightness=0.1)
    once = draw(seeds, settings, (50, 50), dropout=True)
    twice = draw(seeds, settings.model_copy(update={"strength": 2}), (50, 50), dropout=True)
    np.testing.assert_allclose(twice.affine[:, 5], 2 * once.affine[:, 5], atol=1e-9)
    np.testing.assert_allclose(twice.contrast - 1, 2 * (once.contrast - 1), atol=1e-9)
    np.testing.assert_allclose(twice.brightness, 2 * once.brightness, atol=1e-9)
    np.testing.assert_allclose(twice.saturation - 1, 2 * (once.saturation - 1), atol=1e-6)


def test_switching_one_operation_off_leaves_the_others_draws_alone() -> None:
    seeds = some_seeds(20)
    with_all = draw(seeds, Augment(), (50, 50), dropout=True)
    without = draw(seeds, Augment(shear=0, saturation=0, flip=0), (50, 50), dropout=False)
    assert np.array_equal(with_all.contrast, without.contrast)
    assert np.array_equal(with_all.brightness, without.brightness)


def test_it_works_where_nothing_can_be_cached(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Like a read-only install: the cache folder is a file, so nothing can be written in it."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = (
        "import numpy as np; from setibl_ray.seti.feeding.augment import plain;"
        "print(plain(np.full((1, 2, 2, 3), 255, np.uint8), np.array([0]), (0.0, 1.0)).sum())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"NUMBA_CACHE_DIR": str(blocked), "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout.strip() == "12.0", done.stderr
