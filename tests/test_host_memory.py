"""What memory a process may take: its machine's, and its batch job's, wherever the limit stands."""

import pytest

from setibl_ray.core import host_memory

GIGABYTE = 1 << 30


@pytest.fixture
def machine(tmp_path):
    """Returns a function that makes a root with 16 GB free, a line of /proc/self/cgroup and files of control groups."""

    def make(own, **groups):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {16 << 20} kB\n")
        (tmp_path / "proc/self/cgroup").write_text(f"3:cpuset:/\n{own}\n")
        for path, content in groups.items():
            file = tmp_path / "sys/fs/cgroup" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{content}\n")
        return tmp_path

    return make


def test_a_machine_without_limits(machine):
    root = machine("0::/user.slice", **{"user.slice/memory.max": "max", "user.slice/memory.current": 5})
    assert host_memory.available(root) == 16 * GIGABYTE
    assert host_memory.limit(root) is None


def test_no_proc_at_all(tmp_path):
    assert host_memory.available(tmp_path) == 1 << 60


def test_the_limit_of_a_group_above_counts(machine):
    """As SLURM and systemd set them: on the job, of which the process is in a step."""
    root = machine(
        "0::/slurm/job_7/step_0/task_0",
        **{
            "slurm/job_7/memory.max": 2 * GIGABYTE,
            "slurm/job_7/memory.current": GIGABYTE // 2,
            "slurm/job_7/step_0/memory.max": "max",
            "slurm/job_7/step_0/memory.current": 1000,
            "slurm/memory.max": 64 * GIGABYTE,
            "slurm/memory.current": 60 * GIGABYTE,
        },
    )
    assert host_memory.available(root) == 2 * GIGABYTE - GIGABYTE // 2
    assert host_memory.limit(root) == 2 * GIGABYTE


def test_version_1_and_its_file_cache(machine):
    root = machine(
        "4:cpu,memory:/slurm/uid_0/job_7",
        **{
            "memory/memory.limit_in_bytes": 9223372036854771712,
            "memory/memory.usage_in_bytes": 3 * GIGABYTE,
            "memory/slurm/uid_0/job_7/memory.limit_in_bytes": 4 * GIGABYTE,
            "memory/slurm/uid_0/job_7/memory.usage_in_bytes": 3 * GIGABYTE,
            "memory/slurm/uid_0/job_7/memory.stat": f"cache 1\ntotal_inactive_file {2 * GIGABYTE}",
        },
    )
    assert host_memory.available(root) == 3 * GIGABYTE
    assert host_memory.limit(root) == 4 * GIGABYTE


@pytest.mark.parametrize(("line", "folder"), [("0::/docker/abc", ""), ("2:memory:/docker/abc", "memory/")])
def test_in_a_container_only_the_top_is_mounted(machine, line, folder):
    limit, used = ("memory.max", "memory.current") if not folder else (
        "memory.limit_in_bytes", "memory.usage_in_bytes",
    )  # fmt: skip
    root = machine(line, **{f"{folder}{limit}": GIGABYTE, f"{folder}{used}": 2 * GIGABYTE})
    assert host_memory.available(root) == 0
