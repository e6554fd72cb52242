"""The frontier of privacy and utility on SST-2: every mechanism, both attackers, the real encoder."""
