"""Hits become candidates: one for each signal, ranked, with flags; a threshold from the null."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from setibl_ray.seti.search.gather import choose_threshold, merge, null_table, recall_table, tops
from setibl_ray.seti.search.settings import SearchSettings


def hit(f_hz=0.0, drift=0.0, score=0.9, snr=20.0, bin_=1):
    return {
        "f_start_mhz": 1400 + (f_hz - 1000 * drift) / 1e6, "f_mhz": 1400 + f_hz / 1e6,
        "f_end_mhz": 1400 + (f_hz + 1000 * drift) / 1e6, "drift_hz_s": drift, "score": score, "snr": [snr, 1.0] * 3,
        "bin": bin_,
    }  # fmt: skip


def test_one_signal_is_one_candidate():
    groups = merge([hit(0, 0.1), hit(5, 0.1, 0.95, 5), hit(0, 0.1, 0.8, 9, 8), hit(500, 0.1), hit(0, 0.5)])
    assert sorted(len(group) for group in groups) == [1, 1, 3]
    assert next(group for group in groups if len(group) == 3)[0]["snr"][0] == 20  # the brightest leads


@given(
    st.lists(
        st.tuples(st.floats(0, 400), st.floats(-0.2, 0.2), st.floats(0.1, 1), st.floats(4, 50)), max_size=25
    )
)
def test_merging_loses_nothing_and_does_not_depend_on_order(values):
    hits = [hit(*value) for value in values]
    groups = merge(hits)
    assert sorted(map(id, hits)) == sorted(id(one) for group in groups for one in group)
    leaders = [group[0] for group in groups]
    for i, a in enumerate(leaders):
        for b in leaders[:i]:
            apart = max(abs(a[k] - b[k]) for k in ("f_start_mhz", "f_end_mhz")) * 1e6
            assert apart > 39.9
    scores = [max(one["score"] for one in group) for group in groups]
    assert scores == sorted(scores, reverse=True)
    again = merge(hits[::-1])
    assert [max(one["score"] for one in group) for group in again] == pytest.approx(scores)


def test_threshold():
    null = [hit(1000 * k, score=0.1 * k) for k in range(1, 10)]
    scores = tops([null])
    assert choose_threshold(SearchSettings(threshold=0.7), scores, 1).value == 0.7
    assert choose_threshold(SearchSettings(), scores, 1).value == 0.95
    for allowed in (0, 1, 3, 20):
        chosen = choose_threshold(SearchSettings(false_per_ghz=allowed), scores, 1.0)
        left = sum(one["score"] >= chosen.value for one in null)
        assert left == min(allowed, 9)
        assert f"{allowed} false candidates per GHz" in chosen.how
    assert choose_threshold(SearchSettings(false_per_ghz=2), scores, 0.5).value == pytest.approx(
        0.8, abs=1e-5
    )
    assert [row["candidates"] for row in null_table(scores, 0.5) if row["threshold"] in (0.05, 0.9)] == [9, 1]


def test_false_candidates_of_several_observations_are_counted_as_candidates_are():
    """Interference at one frequency is one candidate in each observation that has it."""
    each = [[hit(3 * k, score=0.9)] for k in range(10)]
    assert tops(each) == [0.9] * 10
    assert tops([[one for own in each for one in own]]) == [0.9]
    assert choose_threshold(SearchSettings(false_per_ghz=1), tops(each), 1.0).value > 0.9


def test_what_is_one_signal_grows_with_the_channel_width():
    apart = [hit(0, 0.1), hit(500, 0.1)]
    assert len(merge(apart)) == 2
    assert len(merge(apart, coarseness=1000.0)) == 1


def test_recall_table():
    rows = [
        {"bin": 1, "snr": 9, "score": 0.9},
        {"bin": 1, "snr": 9, "score": 0.2},
        {"bin": 8, "snr": 60, "score": 0.8},
    ]
    table = recall_table(rows, 0.5)
    assert [(row["bin"], row["snr_from"], row["injected"], row["found"]) for row in table] == [
        (1, 8, 2, 1),
        (8, 50, 1, 1),
    ]
    assert recall_table([], 0.5) == []


def test_coincidences_and_exclusions():
    from setibl_ray.seti.search import gather

    def observation(name, source, session="s"):
        header = SimpleNamespace(source=source, tstart_mjd=60000.0, path=f"{name}.h5")
        return SimpleNamespace(
            name=name, session=session, headers=[header] * 6, is_reversed=False, df_hz=2.8, coarseness=1.0, channels=()
        )  # fmt: skip

    observations = [observation("a", "A"), observation("b", "B"), observation("c", "C", "another")]
    own = hit(0) | {"folds": [0.9], "width_hz": 3.0, "picture": {}}
    hits = {
        "a": [own, own | {"f_mhz": 1401.0, "f_start_mhz": 1401.0, "f_end_mhz": 1401.0}],
        "b": [hit(100)],
        "c": [hit(0)],
    }
    hits = {
        name: [one | {"folds": [0.9], "width_hz": 3.0, "picture": {}} for one in own]
        for name, own in hits.items()
    }
    rows = gather.candidates(observations, hits, 0.5, exclude_mhz=((1400.9, 1401.1),))
    flags = {row["id"]: row["flags"] for row in rows}
    assert flags == {
        "a-1400000000": "also-in:b", "a-1401000000": "excluded", "b-1400000100": "also-in:a", "c-1400000000": "",
    }  # fmt: skip
