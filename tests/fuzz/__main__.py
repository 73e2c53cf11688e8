"""Attack one door, or hand it one input: see harness.py."""

from __future__ import annotations

import argparse
import os
import resource
import sys
from pathlib import Path

from tests.fuzz.harness import CEILING, Failed, Measured, find, work


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("door")
    parser.add_argument("place", help="a file: the input; with --seconds, the folder to tell of a failure in")
    parser.add_argument("--seed", default="statepipe")
    parser.add_argument("--seconds", type=float)
    given = parser.parse_args()
    if given.seconds is not None:
        return work(given.door, given.seed, given.seconds, given.place)
    data = Path(given.place).read_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (CEILING, CEILING))
    try:
        Measured(find(given.door)).enter(data)
    except Failed as failed:
        print(failed)
        return 1
    print("nothing gave")
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # whatever threads an input has left
