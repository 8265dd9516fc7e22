import pytest


@pytest.fixture(scope="session")
def own_ray():
    """A Ray of this test process's own, two CPUs."""
    from setibl_ray.cluster import connect

    with connect.connected(None, n_cpus=2):
        yield
