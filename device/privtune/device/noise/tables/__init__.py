"""Public tables that mechanisms draw from: token graph, clusters, shifts, word statistics; cached on disk."""
