"""Imports point downwards: the orchestrator knows nothing of cadences, and a driver never loads TensorFlow.

Imports are followed through modules, into functions, and through names in strings (`package.module:attribute`), as a
task, a clean-up function or a model may be named instead of imported.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import setibl_ray

PACKAGE = Path(setibl_ray.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py"))
CORE = [module for module in MODULES if module.startswith("setibl_ray/core/")]
ENTRIES = [module for module in MODULES if module.count("/") == 1]
NAMED = re.compile(r"([A-Za-z_][\w]*(?:\.\w+)*):\w+")
# The door to what computes: a driver knows these by name only.
WORKERS = ("setibl_ray.seti.train", "setibl_ray.seti.feeding.pipeline")
TENSORFLOW = (
    "tensorflow",
    "tensorflow_addons",
    "efficientnet",
    "keras",
    "tf_keras",
    "keras_cv_attention_models",
)


def dotted(module: str) -> str:
    return module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


PATHS = {dotted(module): PACKAGE.parent / module for module in MODULES}


def mentioned(name: str) -> tuple[set[str], set[str]]:
    """What a module imports anywhere, and what it names in strings; both as dotted names."""
    imported, named = set(), set()
    for node in ast.walk(ast.parse(PATHS[name].read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = NAMED.fullmatch(node.value)
            named |= {found[1]} if found else {node.value} & PATHS.keys()
    return imported, named


def reached(name: str, *, strings: bool, stop: tuple[str, ...] = ()) -> set[str]:
    """Everything that a module leads to, modules of this package followed further."""
    found, todo = set(), [name]
    while todo:
        imported, named = mentioned(todo.pop())
        for other in imported | (named if strings else set()):
            parents = {other.rsplit(".", n)[0] for n in range(other.count(".") + 1)}
            for step in (parents | {other}) - found:
                found.add(step)
                # The package itself loads what it exports when somebody asks for it: being imported leads nowhere.
                if step != "setibl_ray" and step in PATHS and not step.startswith(stop or ("-",)):
                    todo.append(step)
    return found


@pytest.mark.parametrize("module", CORE)
def test_the_orchestrator_reaches_nothing_of_the_field(module):
    found = {name for name in reached(dotted(module), strings=True) if name.startswith("setibl_ray.seti")}
    assert not found
    assert not {name.split(".")[0] for name in reached(dotted(module), strings=True)} & set(TENSORFLOW)


@pytest.mark.parametrize("module", ENTRIES)
def test_a_driver_reaches_tensorflow_by_name_only(module):
    found = reached(dotted(module), strings=False)
    assert not {name for name in found if name.startswith(WORKERS)}
    assert not {name.split(".")[0] for name in found} & set(TENSORFLOW)


@pytest.mark.parametrize("module", MODULES)
def test_layers(module):
    name = dotted(module)
    imported, _ = mentioned(name)

    def uses(*packages):
        return any(
            one == package or one.startswith(f"{package}.") for one in imported for package in packages
        )

    below = module.removeprefix("setibl_ray/")
    if below.startswith("core/") and not below.startswith(("core/cluster/", "core/tuning/")):
        assert not uses("ray")
    if not below.startswith(("core/reporting/", "seti/reporting/")):
        assert not uses("matplotlib", "plotly")
    if name.startswith(WORKERS):
        assert not uses("setibl_ray.core.cluster", "setibl_ray.core.run")
    if below.startswith("core/cluster/"):
        assert not uses("setibl_ray.core.run")
    if below.startswith("core/") and below.count("/") == 1:
        assert not uses("setibl_ray.core.tuning")


def test_the_walk_finds_what_it_should():
    """Names in strings, imports within functions and several steps away are seen."""
    assert "setibl_ray.seti.feeding.panels" in reached("setibl_ray.seti.task", strings=True)
    assert "tensorflow" in reached("setibl_ray.seti.task", strings=True)
    assert "tensorflow" in reached("setibl_ray.seti.train.fold", strings=False)


def test_a_driver_has_everything_it_needs_without_tensorflow():
    code = (
        "import sys, setibl_ray.cv, setibl_ray.api, setibl_ray.core.cluster.runner, setibl_ray.data;"
        "import setibl_ray.sweep, setibl_ray.core.tuning.engine, setibl_ray.seti.task;"
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
