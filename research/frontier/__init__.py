"""The frontier of privacy and utility on SST-2. `python -m research.frontier --help`."""
