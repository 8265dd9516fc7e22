"""Ray: joining a cluster, placing folds on its nodes, running them, and validating cluster files."""

import logging
import warnings

# Imported in a notebook without ipywidgets, Ray and its progress bars say so; nothing here needs them.
logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", message="IProgress not found")
