"""What .ci/run makes of tests that failed: which are repeated, and whether those that then passed may have done so.

    flaky.py check                the allow-list (.ci/flaky) is well formed, and none of its lines is older than 30 days
    flaky.py failed CACHE         print the names that failed, by pytest's cache; an error if none is to be repeated
    flaky.py repeated CACHE FILE  FILE has those names: tell which failed again, and which passed and may not have

Status 0 if all is well, else 1 and the reasons. Any Python 3 runs this: it uses the standard library alone.
"""

import datetime
import json
import re
import sys
from pathlib import Path

ALLOWED = Path(".ci/flaky")
DAYS = 30
STRICT_FROM = datetime.date(2026, 12, 20)
"""From this day on a test that passes only when it is repeated fails the run, unless the list has its name. Until then
it is named, so that the list begins with what was seen and not with guesses: 8,000 tests were never held to this."""

REPEATED = 20
"""More tests than this do not fail by accident."""

LINE = re.compile(r"(?P<day>\d{4}-\d\d-\d\d) (?P<rest>(?P<path>[^ :]+\.py)::(?P<function>\w+).* \S.*)")


def allowed(today):
    """The entries of the list, and what is wrong with its lines."""
    entries, wrong = [], []
    for number, line in enumerate(ALLOWED.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{ALLOWED}:{number}:"
        found = LINE.fullmatch(line)
        try:
            day = datetime.date.fromisoformat(found["day"]) if found else None
        except ValueError:
            day = None
        if day is None:
            wrong.append(f"{where} not a line of the form YYYY-MM-DD NAME why: {line}")
        elif day > today:
            wrong.append(f"{where} {day} has not come yet")
        elif (today - day).days > DAYS:
            wrong.append(f"{where} {day} is more than {DAYS} days ago: mend the test, then remove the line")
        elif not defines(Path(found["path"]), found["function"]):
            wrong.append(f"{where} there is no {found['function']} in {found['path']}: remove the line")
        else:
            entries.append((day, found["rest"]))
    return entries, wrong


def defines(path, function):
    return path.is_file() and re.search(rf"\b(def|class) {function}\b", path.read_text()) is not None


def failures(cache):
    """The names in pytest's own note of what failed last."""
    note = Path(cache, "v", "cache", "lastfailed")
    return sorted(json.loads(note.read_text())) if note.exists() else []


def failed(cache):
    """The names to repeat, and why there are none."""
    names = failures(cache)
    files = [name for name in names if "::" not in name]
    if files:
        return [], [f"{name} cannot be collected: none of its tests was run" for name in files]
    if not names:
        return [], [f"tests failed, but {cache} names none of them"]
    if len(names) > REPEATED:
        return [], [f"{len(names)} tests failed, which is no accident: nothing is repeated"]
    return names, []


def repeated(before, after, entries, today):
    """What to say of the names that failed before, and which of them fail the run."""
    lines, wrong = [], []
    for name in before:
        if name in after:
            wrong.append(f"FAILED {name} (twice)")
            continue
        why = next((f"{day}: {rest[len(name) + 1 :]}" for day, rest in entries if rest.startswith(f"{name} ")), None)
        if why is None:
            line = f"FLAKY {name} (it failed, then passed, and {ALLOWED} does not have it)"
            (lines if today < STRICT_FROM else wrong).append(line)
        else:
            lines.append(f"FLAKY {name} (allowed since {why})")
    return lines, wrong + [f"FAILED {name} (only when it was repeated)" for name in after if name not in before]


def main(verb, *words):
    today = datetime.date.today()
    entries, wrong = allowed(today)
    lines = []
    if verb == "failed":
        lines, wrong = failed(*words)
    elif verb == "repeated":
        cache, before = words
        lines, wrong = repeated(Path(before).read_text().splitlines(), failures(cache), entries, today)
    print("\n".join([*lines, *wrong]), file=sys.stderr if wrong else sys.stdout)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
