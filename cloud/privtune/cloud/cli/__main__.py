"""`python -m privtune.cloud.cli`."""

from privtune.cloud.cli import main

main()
