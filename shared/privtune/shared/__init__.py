"""What device and cloud must agree on. Only `privtune.shared.modeling` imports torch."""

__version__ = "0.1.0"
