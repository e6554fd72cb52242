"""Jobs: their states, their rows, and who is told when they change."""
