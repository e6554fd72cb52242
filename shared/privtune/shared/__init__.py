"""What the device and the cloud must agree on. Free of torch outside `privtune.shared.modeling`."""

__version__ = "0.1.0"
