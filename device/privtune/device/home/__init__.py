"""The device's own folder: where jobs, packages and releases live, and the owner's policy."""
