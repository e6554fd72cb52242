"""`python -m privtune.device.cli`."""

from privtune.device.cli import main

main()
