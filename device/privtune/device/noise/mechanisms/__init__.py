"""The mechanisms, one file each. `privtune.device.noise.registry` lists them."""
