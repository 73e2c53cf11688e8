"""inspect: what a state file's metadata says; of a foreign stream, which has none, what its structure shows."""

from __future__ import annotations

from statepipe.ends.fd import Nowhere
from statepipe.formats.libvirtimage import Domain
from statepipe.pipeline.pipeline import Pipeline
from statepipe.state.file import Keys, open_state
from statepipe.state.loading import Ends, foreign_state, read_ends
from statepipe.state.source import damage_named
from statepipe.typed import Any


def inspect(path: str, keys: Keys) -> dict[str, Any]:
    """Return `file`, `size` (bytes), `format`, `header`, `trailer`, and `domain` if libvirt ran the guest.

    A foreign stream and that in a save image of libvirt's are read whole: `stream` stands for header and trailer.

    Only the two ends of a state are decrypted. Raises StatepipeError.
    """
    with open_state(path, keys) as source:
        ends = read_ends(source)
        facts = {"file": source.name, "size": source.stored(), "format": name_format(ends, source.sealed)}
        if ends.domain is not None:
            facts["domain"] = describe_domain(ends.domain)
        if ends.is_state:
            return facts | {"header": ends.header, "trailer": ends.trailer}
        state = foreign_state(source, ends)
        assert state.stream is not None
        with damage_named(source.name):
            Pipeline(source, state.stages(), Nowhere()).pour()
        return facts | {"stream": state.stream.facts()}


def describe_domain(domain: Domain) -> dict[str, Any]:
    """Return `name`, `uuid`, `was_running`, `xml`, and `cookie` (None if there is none). A byte of a text that is not
    UTF-8 is a surrogate, as in a path."""
    from statepipe.formats.domainxml import identity

    texts = {"xml": domain.xml, "cookie": domain.cookie or None}
    told = {name: text and text.decode(errors="surrogateescape") for name, text in texts.items()}
    return {**identity(domain.xml)._asdict(), "was_running": domain.was_running, **told}


def name_format(ends: Ends, sealed: str | None) -> str:
    """Return the name of the format of a file with these ends, encrypted as `sealed` says."""
    name = "statepipe state" if ends.is_state else f"migration stream, {ends.codec}"
    if ends.is_image:
        name = f"save image of libvirt, {ends.codec}" + (" (statepipe state)" if ends.is_state else "")
    return f"{name}, encrypted ({sealed})" if sealed else name
