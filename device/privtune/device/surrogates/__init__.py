"""Surrogates replace what identifies before the model reads a text; in what it writes, the true words return."""
