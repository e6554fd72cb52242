"""Jobs: their states and rows, and notice of their changes."""
