"""make bench: measure, print a table, exit 0 unless something broke. Nothing here asserts a time.

    python -m tests.bench [NAME…] [--rounds N] [--size SIZE] [--json FILE]

A row runs statepipe and its peer in turns (A B A B …) on one input and compares medians. Figures of a machine that
does other things are what they are: the spread beside each median, (slowest - fastest) / median, tells how much.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from statepipe.units import format_size, parse_size
from tests.bench.data import DEFAULT_SIZE, Inputs, choose_folder, make_inputs
from tests.bench.measure import Broken
from tests.bench.rows import BY_NAME, ROWS, Bench
from tests.bench.table import Row, legend, machine, render

DEFAULT = f"default: all but {', '.join(BY_NAME)}"


def main() -> int:
    """Run the rows that were asked for; 0, or 1 if one could not be run."""
    options = parse_options()
    place = choose_folder(parse_size(options.size) if options.size else DEFAULT_SIZE)
    print(machine())
    with tempfile.TemporaryDirectory(prefix="statepipe-bench-", dir=place.folder) as folder:
        try:
            inputs = make_inputs(Path(folder), place.size)
        except Broken as error:
            sys.exit(f"broke: {error}")
        print(f"input: {inputs.origin}: {inputs.size / 1e6:.0f} MB, in {place.folder} ({place.kind})\n", flush=True)
        rows, broken = run_rows(options.names or [name for name in ROWS if name not in BY_NAME], inputs, options.rounds)
    print("\n".join(["", render(rows), "", legend(options.rounds)]))
    if options.json:
        write_json(options.json, rows, inputs)
    for reason in broken:
        print(f"broke: {reason}", file=sys.stderr)
    return 1 if broken else 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows to run, of {', '.join(ROWS)}; {DEFAULT}")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="runs of each side of a row (5)")
    parser.add_argument("--size", metavar="SIZE", help=f"of the input, as 500M ({format_size(DEFAULT_SIZE)})")
    parser.add_argument("--json", metavar="FILE", help="write every single run to FILE as well")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in ROWS]:
        parser.error(f"no such row: {', '.join(unknown)}")
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def run_rows(names: list[str], inputs: Inputs, rounds: int) -> tuple[list[Row], list[str]]:
    """The rows' results, and what went wrong in those that have none."""
    rows: list[Row] = []
    broken = []
    bench = Bench(inputs, rounds)
    for name in names:
        print(f"measuring {name} …", file=sys.stderr, flush=True)
        try:
            rows += ROWS[name](bench)
        except Broken as error:
            broken.append(f"{name}: {error}")
    return rows, broken


def write_json(path: str, rows: list[Row], inputs: Inputs) -> None:
    """Everything that was measured."""
    facts = {"machine": machine(), "input": inputs.origin, "bytes": inputs.size, "load": os.getloadavg()}
    Path(path).write_text(json.dumps(facts | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
