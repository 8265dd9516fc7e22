"""Ray: joining a cluster, placing folds on its nodes, running them, and validating cluster files."""

import logging
import warnings

# In a notebook, Ray and its progress bars warn if ipywidgets is missing; nothing here needs it.
logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message="IProgress not found")
