"""What the NVIDIA driver says, asked through libcuda: how much memory a GPU has, or why there is no GPU.

TensorFlow tells neither how large a GPU is nor why it sees none. Nothing here creates a CUDA context, which would take
memory of the GPU.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

# From cuda.h, CUresult.
_NO_DEVICE = 100
_DRIVER_MISMATCH = 803


def memory_bytes(number: int = 0) -> int:
    """The memory of one of the GPUs (or MIG instances) that this process may see.

    Raises:
      OSError: the driver does not say.
    """
    cuda = _libcuda()
    device, size = ctypes.c_int(), ctypes.c_size_t()
    for error in (
        cuda.cuInit(0),
        cuda.cuDeviceGet(ctypes.byref(device), number),
        cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device),
    ):
        if error:
            raise OSError(f"CUDA error {error} when asked for the memory of GPU {number}")
    return size.value


def why_none(needed_cuda: str | None) -> str:
    """Why TensorFlow sees no GPU, and what to do, on one line.

    Args:
      needed_cuda: the CUDA version that TensorFlow was built for; None if it was built without.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if needed_cuda is None:
        return "this TensorFlow was built without CUDA; install the package `tensorflow`"
    try:
        cuda = _libcuda()
    except OSError:
        return "this machine has no NVIDIA driver (libcuda.so.1)"
    error = cuda.cuInit(0)
    if error == _NO_DEVICE and visible is not None:
        return f"CUDA_VISIBLE_DEVICES={visible!r} leaves the driver none"
    if error == _NO_DEVICE:
        return "the NVIDIA driver finds none"
    if error == _DRIVER_MISMATCH:
        return "the NVIDIA driver's kernel module and its libraries are of different versions; reboot the machine"
    if error:
        return f"the NVIDIA driver does not start (CUDA error {error}); try `nvidia-smi`"
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    major, minor = version.value // 1000, version.value % 1000 // 10
    if major < int(needed_cuda.split(".")[0]):
        return f"the NVIDIA driver ends at CUDA {major}.{minor}, TensorFlow needs {needed_cuda}; install a newer driver"
    return f"the NVIDIA driver works, but TensorFlow lacks its CUDA {needed_cuda} libraries; install setibl-ray[cuda]"


def _libcuda() -> Any:
    return ctypes.CDLL("libcuda.so.1")
