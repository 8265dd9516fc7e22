"""Making data sets: synthesise, pack, verify."""
