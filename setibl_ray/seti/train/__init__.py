"""What a fold task computes with TensorFlow: devices, models, one compiled trainer, the fold itself."""

import os

# Before TensorFlow is first imported: its start-up lines (no CUDA here, no TensorRT there) are not a user's business.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
