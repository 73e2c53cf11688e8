"""statepipe: carries the state of running virtual machines through pipes, and says the truth about it."""

__version__ = "0.1.0"
