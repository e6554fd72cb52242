"""The device's own folder: its paths, each job's files, lock and request, the failure log, and the policy."""
