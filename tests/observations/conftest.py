import pytest

from setibl_ray.seti.observations.simulating import Sky, simulate

SMALL = Sky(seed=3, n_channels=8192, n_coarse=2, rfi_per_mhz=200, snr=(40.0,), per_snr=3)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """observation.csv of six small .h5 files."""
    return simulate(SMALL, tmp_path_factory.mktemp("small") / "sky")
