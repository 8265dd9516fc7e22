"""Telescope files: reading and conditioning observations, and injecting signals into them."""
