"""The verb pki: from parsed values to trust/pki.py, and from certificates to a table."""

from __future__ import annotations

import json
import os

from statepipe.cli.grammar import refuse_strays
from statepipe.cli.messages import clean, say, show
from statepipe.cli.verb import Values
from statepipe.ends.config import config_folder
from statepipe.errors import UsageError


def run_pki(name: str, values: Values) -> int:
    """Do what ACTION says, and show the certificates concerned."""
    from statepipe.trust import pki

    action, names, folder = values["action"], values["names"], values["dir"]
    refuse_strays(name, values, f"pki {action}")
    ca = values["ca"] or os.path.join(config_folder(), "ca")
    if action == "init":
        if len(names) > 1:
            raise UsageError("an authority has one name", hint="put it in quotes if it has spaces")
        rows = [pki.init(ca, names[0] if names else None, values["days"])]
    elif action == "issue":
        if not names or folder is None:
            hint = "for example: statepipe pki issue --dir FOLDER HOST"
            raise UsageError("pki issue needs the host's names, and --dir DIR for its folder", hint=hint)
        uses = (values["for"],) if values["for"] else ("server", "client")
        rows = pki.issue_folder(ca, names, folder, uses, values["days"])
    elif action == "revoke":
        if not names:
            raise UsageError("pki revoke needs names or serial numbers", hint="they are listed by: statepipe pki show")
        rows = pki.revoke_certificates(ca, names, folder)
        listed = os.path.join(ca, pki.CA_CRL)
        say(f"statepipe: pki: the revocation list is {listed}; copy it to every host that is to obey it")
    else:
        if names:
            raise UsageError("pki show takes no names", hint="name a folder with --dir, or an authority with --ca")
        rows = pki.show(folder or ca)
    if values["json"]:
        show(json.dumps([pki.as_json(row) for row in rows], indent=2))
        return 0
    cells = [("NAME", "USE", "SERIAL", "UNTIL", "STATE")]
    for row in rows:
        it = row.facts
        cells.append((clean(it.name), it.use, it.serial, f"{it.ends:%Y-%m-%d}", row.state))
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    show("\n".join("  ".join([*map(str.ljust, line[:4], widths), line[4]]) for line in cells))
    return 0
