"""`python -m conclip` is the console script."""

from conclip.cli import main

main()
