"""The verb pki: from parsed values to trust/pki.py, and from certificates to a table."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from statepipe.cli.messages import clean, say, show
from statepipe.ends.config import config_folder
from statepipe.errors import UsageError

if TYPE_CHECKING:
    from statepipe.trust.pki import Row

Values = dict[str, Any]

TAKES = {
    "init": ("ca", "days"),
    "issue": ("ca", "days", "dir", "for"),
    "revoke": ("ca", "dir"),
    "show": ("ca", "dir"),
}
"""Which options go with which action; --json goes with all."""


def run_pki(name: str, values: Values) -> int:
    """Do what the first word says, and show the certificates it concerned."""
    action = values["action"]
    for option in ("ca", "days", "dir", "for"):
        if values[option] is not None and option not in TAKES[action]:
            raise UsageError(f"--{option} has no place in 'pki {action}'")
    ca = values["ca"] or os.path.join(config_folder(), "ca")
    rows = {"init": _init, "issue": _issue, "revoke": _revoke, "show": _show}[action](ca, values)
    _tell(rows, as_json=values["json"])
    return 0


def _init(ca: str, values: Values) -> list[Row]:
    from statepipe.trust.pki import init

    if len(values["names"]) > 1:
        raise UsageError("an authority has one name", hint="put it in quotes if it has spaces")
    return [init(ca, values["names"][0] if values["names"] else None, _days(values))]


def _issue(ca: str, values: Values) -> list[Row]:
    from statepipe.trust.pki import issue_folder

    if not values["names"] or values["dir"] is None:
        raise UsageError("pki issue needs the host's names, and --dir DIR for its folder")
    uses = (values["for"],) if values["for"] else ("server", "client")
    return issue_folder(ca, values["names"], values["dir"], uses, _days(values))


def _revoke(ca: str, values: Values) -> list[Row]:
    from statepipe.trust.pki import CA_CRL, revoke_certificates

    if not values["names"]:
        raise UsageError("pki revoke needs names or serial numbers", hint="see: statepipe pki show")
    rows = revoke_certificates(ca, values["names"], values["dir"])
    say(f"statepipe: pki: the list is {os.path.join(ca, CA_CRL)}; it counts on the hosts that have a copy of it")
    return rows


def _show(ca: str, values: Values) -> list[Row]:
    from statepipe.trust.pki import show as read

    if values["names"]:
        raise UsageError("pki show takes no names")
    return read(values["dir"] or ca)


def _days(values: Values) -> int | None:
    text = values["days"]
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= 36500:
        raise UsageError(f"'{text}' is not a number of days")
    return int(text)


def _tell(rows: Sequence[Row], *, as_json: bool) -> None:
    from statepipe.trust.pki import as_json as fields

    show(json.dumps([fields(row) for row in rows], indent=2) if as_json else _table(rows))


def _table(rows: Sequence[Row]) -> str:
    cells = [("NAME", "USE", "SERIAL", "UNTIL", "STATE")]
    cells += [(clean(row.name), row.use, row.serial, f"{row.ends:%Y-%m-%d}", row.state) for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return "\n".join("  ".join([*map(str.ljust, line[:4], widths), line[4]]) for line in cells)
