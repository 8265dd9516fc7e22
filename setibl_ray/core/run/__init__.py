"""A run from start to end: the driver, the folds it follows, the folder it writes, and reading that folder back."""
