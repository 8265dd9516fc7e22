"""`setibl-ray COMMAND …`: the same commands as `python -m setibl_ray.COMMAND …`."""

from __future__ import annotations

import os
import runpy
import sys

COMMANDS = {
    "cv": "cross-validate on Ray and write a run folder",
    "sweep": "search hyperparameters with Ray Tune over whole cross-validations",
    "data": "synthesise, inject, pack and verify shards",
    "predict": "apply a finished run to other cadences",
    "search": "find candidates in telescope files with a finished run",
    "evaluate": "what a run's predictions are worth",
    "report": "one page about a run, or several side by side",
    "blend": "weights over runs that maximise out-of-fold AUC",
    "cluster": "check cluster files",
    "completion": "a script with which bash or zsh complete these commands and their flags",
}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    lines = "\n".join(f"  {command:10} {what}" for command, what in COMMANDS.items())
    usage = f"usage: setibl-ray COMMAND [options]   (setibl-ray COMMAND --help)\n\n{lines}"
    if name in ("-h", "--help"):
        print(usage)
        return
    if name not in COMMANDS:
        print(f"setibl-ray: expected a command, got {name!r}\n\n{usage}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    # As `python -m` does, so that the module of --postprocess module:function is found in the working folder.
    sys.path.insert(0, os.getcwd())
    runpy.run_module(f"setibl_ray.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
