"""Searching observations with a finished run: windows, hits, candidates, results."""
