"""`python -m ditzoo`."""

from ditzoo.cli import main

main()
