"""Ray: joining a cluster, placing folds on its nodes, running them, and validating cluster files."""
