"""`python -m statepipe`."""

from statepipe.start import entry

entry()
