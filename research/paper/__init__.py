"""The paper's evaluation: five data sets, every mechanism, both attackers. `python -m research.paper --help`.

datasets (texts, splits) -> cell, evaluation (one measurement, kept as a line) -> rows, output (tables, pictures).
"""
