"""Imports point downwards: pure modules know neither Ray nor TensorFlow, and a driver never loads TensorFlow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import setibl_ray

PACKAGE = Path(setibl_ray.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
RAY = ("core/cluster/", "cluster", "sweep", "core/tuning/")
TENSORFLOW = ("seti/train/", "seti/feeding/pipeline.py")
PLOTTING = ("core/reporting/", "seti/reporting/")


def imported(module: str) -> set[str]:
    """Top-level names of everything a module imports anywhere, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def uses(module: str, *packages: str) -> bool:
    return any(
        name == package or name.startswith(f"{package}.") for name in imported(module) for package in packages
    )


@pytest.mark.parametrize("module", MODULES)
def test_layers(module):
    if not module.startswith(RAY):
        assert not uses(module, "ray")
    if not module.startswith(TENSORFLOW):
        assert not uses(
            module, "tensorflow", "tensorflow_addons", "efficientnet", "keras_cv_attention_models"
        )
        assert not uses(module, "setibl_ray.seti.train")
    if not module.startswith(PLOTTING):
        assert not uses(module, "matplotlib", "plotly")
    if module.startswith(TENSORFLOW):
        assert not uses(module, "setibl_ray.core.cluster", "setibl_ray.core.run")
    if module.startswith("core/cluster/"):
        # What moves folds about knows nothing of SETI.
        assert not uses(
            module,
            "setibl_ray.seti.feeding",
            "setibl_ray.seti.cadence",
            "setibl_ray.seti.train",
            "setibl_ray.core.run",
        )
    if module.startswith("seti/evaluation/"):
        assert not uses(
            module, "setibl_ray.core.cluster", "setibl_ray.core.run.session", "setibl_ray.core.run.supervisor"
        )


def test_a_driver_has_everything_it_needs_without_tensorflow():
    code = (
        "import sys, setibl_ray.cv, setibl_ray.core.run.session, setibl_ray.core.cluster.runner, setibl_ray.data;"
        "import setibl_ray.sweep, setibl_ray.core.tuning.engine;"
        "print([name for name in ('tensorflow', 'keras', 'matplotlib', 'plotly') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_is_quick_to_import():
    code = (
        "import sys, setibl_ray.cv, setibl_ray.sweep;"
        "print([n for n in ('numpy', 'pandas', 'ray', 'sklearn') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
