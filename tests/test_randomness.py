import hypothesis.strategies as st
import numpy as np
from hypothesis import given
from scipy import stats

from setibl_ray.core import randomness


def test_streams_with_different_names_are_different():
    names = [
        (42, "augment", 0, 1),
        (42, "augment", 1, 0),
        (42, "augment", 0, "1"),
        (42, "augment", "0", 1),
        (43, "augment", 0, 1),
        (42, "aug", "ment", 0, 1),
    ]
    assert len({randomness.stream_key(*name) for name in names}) == len(names)
    # A change here changes every result of every run.
    assert randomness.stream_key(42, "augment", 0, 1) == 1549492090571437789


@given(
    st.lists(st.text(min_size=1, max_size=15), min_size=2, max_size=20, unique=True),
    st.integers(0, 2**64 - 1),
)
def test_a_samples_draws_do_not_depend_on_its_batch(ids, key):
    together = randomness.uniforms(randomness.sample_seeds(key, randomness.sample_keys(ids)), 5)
    alone = [
        randomness.uniforms(randomness.sample_seeds(key, randomness.sample_keys([i])), 5)[0] for i in ids
    ]
    assert (together == np.array(alone)).all()


def test_draws_are_uniform_and_uncorrelated():
    keys = randomness.sample_keys(str(i) for i in range(20_000))
    draws = randomness.uniforms(randomness.sample_seeds(7, keys), 4)
    assert draws.min() > 0
    assert draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    correlation = np.corrcoef(np.hstack([draws, randomness.uniforms(randomness.sample_seeds(8, keys), 4)]).T)
    assert np.abs(correlation - np.eye(8)).max() < 0.03
