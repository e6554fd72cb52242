"""The Python API: what commands do, as calls; the commands are made of the same functions."""
