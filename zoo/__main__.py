"""``python -m zoo`` is the ``lightning`` command."""

from zoo.cli import main

main()
