"""What breaks things at length, and a small form of it for every run of the suite."""
