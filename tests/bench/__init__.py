"""How fast statepipe is, beside the tools that people use today. `python -m tests.bench --help` says how to run it."""
