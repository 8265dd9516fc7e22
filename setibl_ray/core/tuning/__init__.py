"""Sweeps: a search space over config fields, trials that are whole cross-validations, and their comparison."""

import setibl_ray.core.cluster  # noqa: F401  # before Ray, whose messages in notebooks it silences
