"""The paper's evaluation: five data sets, every mechanism, both attackers. `python -m research.paper --help`.

datasets (texts, splits) -> cells (one measurement, kept in a file) -> tables (JSON, markdown, pictures).
"""
