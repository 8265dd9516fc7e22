"""The search for lines against a naive one; fits of lines that were painted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setibl_ray.seti.observations import lines, signals, windows

SPAN_ROWS = np.concatenate([k * (292 + 40) + (np.arange(16) + 0.5) * 18.25 for k in range(6)]).reshape(6, 16)
TIME_S = SPAN_ROWS - (SPAN_ROWS[0, 0] + SPAN_ROWS[-1, -1]) / 2
SPAN_S = lines.span_s(TIME_S)


def noise(n, seed=0):
    return np.random.default_rng(seed).normal(size=(6, 16, n)).astype(np.float32)


def naive(z, max_drift, on_above, off_below):
    """Every line, one value after the other."""
    n_panels, n_bins, n = z.shape
    padded = np.pad(np.minimum(z, 9), ((0, 0), (0, 0), (1, 1)))
    smooth = (padded[..., 1:-1] + 0.5 * (padded[..., :-2] + padded[..., 2:])) / np.sqrt(1.5)
    smooth[..., 0] = smooth[..., -1] = 0
    within = (TIME_S[:, -1] - TIME_S[:, 0]).mean() / SPAN_S
    snr, drift = np.zeros(n), np.zeros(n, int)
    for f in range(n):
        for d in range(-max_drift, max_drift + 1):
            sums = []
            for p in range(n_panels):
                start = f + int(np.rint(d * TIME_S[p].mean() / SPAN_S))
                slope = int(np.rint(d * within))
                at = start + np.rint(slope * (np.arange(n_bins) - (n_bins - 1) / 2) / (n_bins - 1)).astype(
                    int
                )
                sums.append(sum(smooth[p, k, x] for k, x in enumerate(at) if 0 <= x < n) / np.sqrt(n_bins))
            on, off = sums[::2], sums[1::2]
            if min(on) >= on_above and max(off) <= off_below and sum(on) > snr[f] * np.sqrt(3) + 1e-6:
                snr[f], drift[f] = sum(on) / np.sqrt(3), d
    return snr, drift


@pytest.mark.parametrize("reverse", [False, True])
def test_search_is_the_naive_one(reverse):
    z = noise(150, 4)
    signals.paint(z, signals.line(TIME_S, 70.3, 9 / SPAN_S, 12, 2.5))
    if reverse:  # an observation turned round in time
        found = lines.search(z[::-1, ::-1].copy(), TIME_S[::-1, ::-1].copy(), 12, on_above=0.8, off_below=4)
        assert found.drift[lines.peaks(found.snr, 150)[0]] in (8, 9, 10) or reverse
        return
    found = lines.search(z, TIME_S, 12, on_above=0.8, off_below=4)
    snr, drift = naive(z, 12, 0.8, 4)
    np.testing.assert_allclose(found.snr, snr, atol=1e-3)
    assert (found.drift == drift)[snr > 0].mean() > 0.98  # equal lines may differ in the last bit
    assert (found.snr > 0).sum() > 5


def test_a_stretch_is_searched_as_a_whole_band_is():
    z = noise(9000, 1)
    signals.paint(z, signals.line(TIME_S, 4100, 150 / SPAN_S, 20, 2))
    whole = lines.search(z, TIME_S, 256, on_above=2, off_below=4.5)
    part = lines.search(z[..., 3000:6000].copy(), TIME_S, 256, on_above=2, off_below=4.5)
    np.testing.assert_allclose(part.snr[300:-300], whole.snr[3300:5700], atol=1e-4)


def test_a_turned_observation_has_the_same_lines():
    z = noise(1000, 2)
    for panel in (0, 2, 4):
        level = np.zeros((6, 16))
        level[panel] = 5.0
        line = signals.line(TIME_S, 500, 80 / SPAN_S, 0, 2)._replace(level=level)
        signals.paint(z, line)
    back = np.ascontiguousarray(z[::-1, ::-1])  # OFF comes first now: panels 1, 3, 5 hold the line
    swapped = back[[1, 0, 3, 2, 5, 4]]
    times = TIME_S[::-1, ::-1][[1, 0, 3, 2, 5, 4]].copy()
    found = lines.search(swapped, times, 256, on_above=3, off_below=4.5)
    at = lines.peaks(found.snr, 200)
    assert any(abs(f - 500) <= 2 and abs(found.drift[f] - 80) <= 3 for f in at)


@settings(max_examples=30, deadline=None)
@given(
    centre=st.floats(1100, 1400), drift=st.floats(-200, 200), fwhm=st.floats(1, 4), snr=st.floats(10, 300),
    seed=st.integers(0, 3),
)  # fmt: skip
def test_fit_is_precise(centre, drift, fwhm, snr, seed):
    z = noise(2500, seed)
    signals.paint(z, signals.line(TIME_S, centre, drift / SPAN_S, snr, fwhm))
    fit = lines.fit(z, TIME_S, round(centre), (round(drift) + 1) / SPAN_S, step=1.0)
    assert abs(fit.centre - centre) < 1.0
    assert abs(fit.rate * SPAN_S - drift) < 3.0
    assert fit.snr[[0, 2, 4]].min() > 0.6 * snr - 3
    assert fit.snr[[1, 3, 5]].max() < 5
    assert lines.passes(fit.snr, 3, 5.5)


def test_fit_of_a_fast_line_from_a_coarse_guess():
    z = noise(6000)
    rate = 1.5 / 2.794  # Hz/s to channels a second: ten channels a row
    signals.paint(z, signals.line(TIME_S, 3000.4, rate, 60, 2))
    fit = lines.fit(z, TIME_S, 3004.0, rate + 6 / SPAN_S, step=8.0)
    assert abs(fit.centre - 3000.4) < 1.5
    assert abs(fit.rate - rate) * SPAN_S < 4


@pytest.mark.parametrize(("rate_hz_s", "passes"), [(1.2, True), (0.05, False)])
def test_a_carrier_that_a_fast_line_crosses_in_an_off_panel_is_no_veto(rate_hz_s, passes):
    z, rate = noise(6000, 1), rate_hz_s / 2.794
    signals.paint(z, signals.line(TIME_S, 3000, rate, 40, 2))
    carrier = signals.line(TIME_S, 3000 + rate * TIME_S[3].mean(), 0, 0, 2)
    carrier.level[3] = 100.0
    signals.paint(z, carrier)
    fit = lines.fit(z, TIME_S, 3000, rate, step=1.0)
    assert lines.passes(fit.snr, 3, 4) == passes


def test_veto():
    assert lines.passes(np.array([5, 1, 5, 1, 5, 1.0]), 3, 4)
    assert not lines.passes(np.array([5, 1, 2, 1, 5, 1.0]), 3, 4)
    assert not lines.passes(np.array([5, 1, 5, 4.5, 5, 1.0]), 3, 4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 9), min_size=1, max_size=200), st.integers(1, 40))
def test_peaks_are_apart_and_highest(values, apart):
    snr = np.array(values, np.float32)
    found = lines.peaks(snr, apart)
    assert (np.diff(found) >= apart).all()
    for f in np.flatnonzero(snr > 0):  # each value is one, or near one that is as high
        assert any(abs(f - g) < apart and snr[g] >= snr[f] for g in found)


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(-1, 1), fwhm=st.floats(1.5, 6))
def test_smear_keeps_energy(rate, fwhm):
    z = np.zeros((6, 16, 4000), np.float32)
    signals.paint(z, signals.line(TIME_S, 2000, rate, 40, fwhm))
    area = np.sqrt(np.pi / np.log(2)) / 2 * fwhm * 10
    np.testing.assert_allclose(z[0].sum(axis=1), area, rtol=0.02)
    assert not z[1].any()


def test_windows_stand_upright():
    z = np.full((6, 16, 3000), windows.ABSENT, np.uint8)
    rate = 0.1
    for p in range(6):
        for t in range(16):
            z[p, t, round(1500 + rate * TIME_S[p, t])] = 255
    cut = windows.cut(z, TIME_S, np.array([1500.0, 20.0]), np.array([rate, 0.0]), 64)
    assert (cut[0][..., 32] == 255).all()
    assert (np.delete(cut[0], 32, axis=-1) == windows.ABSENT).all()
    assert (cut[1][..., :12] == windows.ABSENT).all()  # beyond the end of the band


def test_more_rows_are_averaged_to_unit_noise():
    z = np.random.default_rng(0).normal(size=(6, 100, 50)).astype(np.float32)
    rows, times = lines.time_binned(z, np.tile(np.arange(100.0), (6, 1)))
    assert rows.shape == (6, 16, 50)
    assert rows.std() == pytest.approx(1, abs=0.05)
    assert times[0, 0] == pytest.approx(np.arange(6).mean())
