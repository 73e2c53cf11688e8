"""`python -m statepipe`."""

from statepipe.cli.main import entry

entry()
