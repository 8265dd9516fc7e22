"""Links this machine's CUDA libraries into one folder, under the names by which TensorFlow 2.21 opens them.

    python clusters/link_cuda.py FOLDER [--cudart libcudart.so.12]
    export LD_LIBRARY_PATH=FOLDER

TensorFlow is built for CUDA 12. Where there is CUDA 13 only, its cuBLAS, cuFFT, cuSOLVER, cuSPARSE and cuDNN 9 serve
under the older names; the runtime does not, so bring `libcudart.so.12` (0.7 MB, from nvidia-cuda-runtime-cu12).
"""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import sys
from pathlib import Path

# Name that TensorFlow opens -> the same library's name in CUDA 13.
IN_CUDA_13 = {
    "libcublas.so.12": "libcublas.so.13",
    "libcublasLt.so.12": "libcublasLt.so.13",
    "libcufft.so.11": "libcufft.so.12",
    "libcusolver.so.11": "libcusolver.so.12",
    "libcusparse.so.12": "libcusparse.so.12",
    "libcupti.so.12": "libcupti.so.13",
    "libcudnn.so.9": "libcudnn.so.9",
    "libnccl.so.2": "libnccl.so.2",
    "libnvshmem_host.so.3": "libnvshmem_host.so.3",
}


def libraries() -> dict[str, str]:
    """Name -> path of every library of CUDA here: those of Python packages first, then the toolkit's."""
    packages = (f"{folder}/nvidia/**/*.so*" for folder in sys.path if folder.endswith("-packages"))
    found: dict[str, str] = {}
    for pattern in (*packages, "/usr/local/cuda*/lib64/*.so*", "/usr/local/cuda*/extras/CUPTI/lib64/*.so*"):
        for path in sorted(glob.glob(pattern, recursive=True)):
            found.setdefault(os.path.basename(path), path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cudart", type=Path, help="libcudart.so.12, where this machine has none")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    found = libraries()
    # All of them, not only those that TensorFlow opens: cuDNN looks for its parts beside itself.
    links = found | {
        name: found[other] for name, other in IN_CUDA_13.items() if name not in found and other in found
    }
    for name, path in links.items():
        (options.folder / name).unlink(missing_ok=True)
        (options.folder / name).symlink_to(path)
    if options.cudart:
        shutil.copy(options.cudart, options.folder / "libcudart.so.12")
    missing = [name for name in ("libcudart.so.12", *IN_CUDA_13) if not (options.folder / name).exists()]
    print(
        f"{len(links)} libraries in {options.folder}"
        + (f"; missing: {', '.join(missing)}" if missing else "")
    )


if __name__ == "__main__":
    main()
