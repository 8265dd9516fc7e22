"""Waiting for what others hold: said once, and not for ever if told so."""

import pytest
import ray
from waiting import wait_for

from setibl_ray.core.cluster.crowd import PATIENCE_S, Crowd, free_nodes
from setibl_ray.core.cluster.placement import Node, Request
from setibl_ray.core.errors import RunStoppedError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_it_is_said_once_and_shown_as_long_as_it_is_so(clock):
    said, free = [], [Node("a", {"CPU": 1, "GPU": 1}), Node("b", {"CPU": 8})]
    crowd = Crowd(Request("gpu", cpus=2, gpus=1), said.append, look=lambda: free, clock=clock)
    assert crowd.state(3, 0) == ""  # a moment is normal
    clock.now = PATIENCE_S
    for _ in range(2):
        assert crowd.state(3, 0) == "waiting for 2 CPUs and 1 GPU in use by others"
    assert said == [
        "waiting for 2 CPUs and 1 GPU in use by others (Ctrl-C gives up; what is finished is kept)"
    ]
    assert crowd.state(3, 1) == ""  # this run itself holds some
    assert crowd.state(3, 0) == ""  # and has just let go
    clock.now *= 2
    assert crowd.state(3, 0) != ""
    free.append(Node("c", {"CPU": 2, "GPU": 1}))
    assert crowd.state(3, 0) == ""
    assert crowd.state(0, 0) == ""
    assert len(said) == 1


def test_it_gives_up_if_told_to(clock):
    crowd = Crowd(Request("cpu", cpus=1), lambda text: None, 60, look=list, clock=clock)
    crowd.state(1, 0)
    clock.now = 59
    assert crowd.state(1, 0) == "waiting for 1 CPU in use by others"
    clock.now = 60
    with pytest.raises(RunStoppedError, match="waited 60 s for 1 CPU on one node, in use by others"):
        crowd.state(1, 0)


def test_what_is_free_of_a_real_cluster(own_ray):
    request = Request("cpu", cpus=2)
    wait_for(lambda: any(map(request.slots, free_nodes())))  # Ray hears of it a second later

    @ray.remote(num_cpus=1)
    class Other:
        def is_there(self):
            return True

    other = Other.remote()
    assert ray.get(other.is_there.remote())
    wait_for(lambda: not any(map(request.slots, free_nodes())))
    ray.kill(other)
