"""One training job on this device, from data to the finished adapter."""
