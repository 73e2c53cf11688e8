"""The verb pki: from parsed values to trust/pki.py, and from certificates to a table."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from statepipe.cli.grammar import refuse_strays
from statepipe.cli.messages import clean, say, show
from statepipe.cli.verb import Values
from statepipe.ends.config import config_folder
from statepipe.errors import UsageError

if TYPE_CHECKING:
    from statepipe.trust.pki import CertificateStatus


def run_pki(name: str, values: Values) -> int:
    """Do what ACTION says, and show the certificates concerned."""
    refuse_strays(name, values, f"pki {values['action']}")
    rows = {"init": _init, "issue": _issue, "revoke": _revoke, "show": _show}[values["action"]](
        values["ca"] or os.path.join(config_folder(), "ca"), values
    )
    if values["json"]:
        from statepipe.trust.pki import as_json

        show(json.dumps([as_json(row) for row in rows], indent=2))
        return 0
    cells = [("NAME", "USE", "SERIAL", "UNTIL", "STATE")]
    for row in rows:
        it = row.facts
        cells.append((clean(it.name), it.use, it.serial, f"{it.ends:%Y-%m-%d}", row.state))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    show("\n".join("  ".join([*map(str.ljust, line[:4], widths), line[4]]) for line in cells))
    return 0


def _init(ca: str, values: Values) -> list[CertificateStatus]:
    from statepipe.trust.pki import init

    if len(values["names"]) > 1:
        raise UsageError("an authority has one name", hint="put it in quotes if it has spaces")
    return [init(ca, values["names"][0] if values["names"] else None, values["days"])]


def _issue(ca: str, values: Values) -> list[CertificateStatus]:
    from statepipe.trust.pki import issue_folder

    if not values["names"] or values["dir"] is None:
        hint = "for example: statepipe pki issue --dir FOLDER HOST"
        raise UsageError("pki issue needs the host's names, and --dir DIR for its folder", hint=hint)
    uses = (values["for"],) if values["for"] else ("server", "client")
    return issue_folder(ca, values["names"], values["dir"], uses, values["days"])


def _revoke(ca: str, values: Values) -> list[CertificateStatus]:
    from statepipe.trust.pki import CA_CRL, revoke_certificates

    if not values["names"]:
        raise UsageError("pki revoke needs names or serial numbers", hint="they are listed by: statepipe pki show")
    rows = revoke_certificates(ca, values["names"], values["dir"])
    say(f"statepipe: pki: the revocation list is {os.path.join(ca, CA_CRL)}; copy it to every host that is to obey it")
    return rows


def _show(ca: str, values: Values) -> list[CertificateStatus]:
    from statepipe.trust.pki import show as read

    if values["names"]:
        raise UsageError("pki show takes no names", hint="name a folder with --dir, or an authority with --ca")
    return read(values["dir"] or ca)
