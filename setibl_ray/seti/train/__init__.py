"""The TensorFlow part of a fold task: devices, models, one compiled trainer, the fold itself."""

import os

# Set before TensorFlow is first imported: its start-up messages (no CUDA, no TensorRT) do not help a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
