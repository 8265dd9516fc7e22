"""`cross_validate` in a real Jupyter kernel: its event loop, its interrupt, its outputs."""

import json
import time

import pytest
from jupyter_client.manager import start_new_kernel
from waiting import wait_for

TASK = """
import asyncio, os, threading, time
import numpy as np, pandas as pd
from pydantic import BaseModel
from setibl_ray import Fitted, Rows, Run, Score, Step, Task, cross_validate

class Settings(BaseModel):
    steps: int = 20

class Slow(Task):
    Settings = Settings
    score = Score("closeness", lambda target, pred: float(-np.abs(target - pred).mean()))

    def open(self, data, config):
        table = pd.DataFrame({"id": [f"[/red]<b>{i}" for i in range(8)], "target": np.arange(8.0)})
        return Rows(table, table[:0][["id"]], "eight")

    def fit(self, work):
        total = float(work.state or 0)
        for step in range(work.step, work.config.steps):
            time.sleep(0.2 if work.fold else 0.02)
            total += np.random.default_rng([work.fold, step]).random()
            yield Step({"[/red]": total}, repr(total).encode())
        yield Fitted(np.full(len(work.valid), total))

def run(out, **more):
    return cross_validate({"folds": 2, "cpus_per_fold": 1}, task=Slow(), data="nothing", out=out, **more)

asyncio.get_running_loop()  # as in every cell: raises if there is none
"""


class Kernel:
    def __init__(self, folder):
        self.folder = folder
        self.manager, self.client = start_new_kernel(cwd=str(folder))

    def begin(self, code):
        self.outputs = []
        return self.client.execute(code)

    def end(self, asked, timeout=200):
        """The reply, with the outputs as a notebook would hold them: updated displays in their places."""
        deadline = time.monotonic() + timeout
        while True:
            message = self.client.get_iopub_msg(timeout=deadline - time.monotonic())
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != asked:
                continue
            if kind in ("stream", "display_data", "update_display_data", "execute_result", "error"):
                self.outputs.append((kind, content))
            if kind == "status" and content["execution_state"] == "idle":
                break
        while (reply := self.client.get_shell_msg(timeout=10))["parent_header"].get("msg_id") != asked:
            pass  # of what came before it
        return reply["content"]

    def do(self, code):
        reply = self.end(self.begin(code))
        assert reply["status"] == "ok", "\n".join(reply["traceback"])

    def text(self):
        return "".join(content["text"] for kind, content in self.outputs if kind == "stream")

    def html(self, kind):
        return [own["data"].get("text/html", "") for name, own in self.outputs if name == kind]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    own = Kernel(tmp_path_factory.mktemp("notebook"))
    try:
        own.do(TASK)
        yield own
    finally:
        own.client.stop_channels()
        own.manager.shutdown_kernel(now=False)


def test_a_run_is_interrupted_and_resumed(kernel):
    asked = kernel.begin("run('one')")
    wait_for(lambda: list(kernel.folder.glob("one/fold-1/state-*")), 200)
    kernel.manager.interrupt_kernel()
    reply = kernel.end(asked)
    assert reply["ename"] == "Interrupted"
    assert "resume=True" in reply["evalue"]

    kernel.do("Run('one')")
    (page,) = kernel.html("execute_result")
    assert "not finished" in page

    kernel.do("run('one', resume=True)")
    (page,) = kernel.html("execute_result")
    assert "out-of-fold closeness" in page
    attempts = json.loads((kernel.folder / "one/manifest.json").read_text())["folds"]["1"]["attempts"]
    assert attempts[-1]["from_step"] > 0

    # A table that is replaced where it stands, not a line per event; what the user wrote is shown as it is.
    assert len(kernel.html("display_data")) == 1
    tables = kernel.html("update_display_data")
    assert "done" in tables[-1]
    assert "[/red]" in tables[-1]
    assert "step 1" not in kernel.text()


def test_in_a_thread_with_a_ray_of_the_users_own(kernel):
    kernel.do("""
import ray
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
done = []
thread = threading.Thread(target=lambda: done.append(run('two')))
thread.start()
thread.join()
print(ray.is_initialized(), done)
ray.shutdown()
""")
    assert "True [Run('two'): out-of-fold closeness" in kernel.text()
    assert (kernel.folder / "two/oof.csv").read_bytes() == (kernel.folder / "one/oof.csv").read_bytes()


def test_a_ray_without_cpus_is_refused_in_one_line(kernel):
    asked = kernel.begin("ray.init(num_cpus=0, include_dashboard=False, log_to_driver=False); run('three')")
    reply = kernel.end(asked)
    assert reply["ename"] == "PlacementError"
    assert "ray.init(num_cpus=" in reply["evalue"]
    assert "\n" not in reply["evalue"]
    kernel.do("ray.shutdown()")
