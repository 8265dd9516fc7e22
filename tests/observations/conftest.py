import pytest
from skies import SMALL

from setibl_ray.seti.observations.simulating import simulate


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """observation.csv of six small .h5 files."""
    return simulate(SMALL, tmp_path_factory.mktemp("small") / "sky")
