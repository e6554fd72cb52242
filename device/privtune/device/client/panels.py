"""Headings under which options are listed, in `--help` and in the help of Python."""

CONNECTION = "Connection"
DATA = "Data"
MACHINE = "This machine"
NOISE = "Noise"
TRAINING = "Training"
