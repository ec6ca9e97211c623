"""`python -m manners` is the `manners` command."""

from manners.cli import main

main()
