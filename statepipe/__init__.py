"""statepipe: carry the state of running virtual machines through pipes, and report truthfully how that went."""

__version__ = "0.1.0"
