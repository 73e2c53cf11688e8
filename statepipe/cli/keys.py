"""Keys and encrypting stages, from options, or else from the configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence

from statepipe.cli.context import context
from statepipe.cli.filtertable import find
from statepipe.cli.verb import Values
from statepipe.descriptors import named_by
from statepipe.ends.configfile import load_config
from statepipe.errors import NoKeyError, UsageError
from statepipe.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from statepipe.formats.age.envelope import Identity
    from statepipe.objectstore.settings import Reading
    from statepipe.pipeline.pipeline import NamedStage
    from statepipe.stage import Stage
    from statepipe.state.file import Keys

PASSPHRASES = ("passphrase", "passphrase_file", "passphrase_fd")
_RECIPIENTS = ("recipients", "recipient", "recipients_file", "sign", *PASSPHRASES)
_IDENTITIES = ("identity", *PASSPHRASES)


def with_defaults(name: str, values: Values) -> Values:
    """Return the values of a filter, with those of the configuration where none were given."""
    if name == "compress" and values["codec"] is None and not values["adapt"]:
        return values | {"codec": load_config().codec}
    if name == "encrypt" and not _given(values, _RECIPIENTS):
        return values | {"recipient": load_config().recipients}
    if name == "decrypt" and not _given(values, _IDENTITIES):
        return values | {"identity": load_config().identities}
    return values


def _given(values: Values, names: Sequence[str]) -> bool:
    return any(values.get(name) for name in names)


def seals(values: Values, words: Sequence[Values]) -> list[NamedStage]:
    """Return the stages that encrypt a save's file: from its options, its `encrypt` word or the configuration.

    Raises UsageError.
    """
    options = {name: values[name] for name in _RECIPIENTS if name in values}
    asked = [options | {"recipients": [], "armor": False}] if _given(options, _RECIPIENTS) else []
    asked += words
    if len(asked) > 1 or (asked and values["plain"]):
        raise UsageError("a state is encrypted once", hint="name all recipients in one place, and leave --plain out")
    if not asked and not values["plain"] and (recipients := load_config().recipients):
        asked = [options | {"recipients": [], "recipient": list(recipients), "armor": False}]
    if any(each["armor"] for each in asked):
        raise UsageError("a state cannot be armored", hint="armored text cannot be read in parts; leave --armor out")
    row = find("encrypt")
    return [(row.name, row.build(with_defaults(row.name, each), context())) for each in asked]


def words_of_keys(values: Values) -> list[str]:
    """Return the words by which another command, in any folder, finds the same keys, and the same cache. It has none of
    our descriptors: instead of a passphrase from one, it asks for it."""
    return [*_words_of_reading(values), *_words_of_keys(values)]


def _words_of_reading(values: Values) -> list[str]:
    words = [] if values["retry"] is None else ["--retry", f"{values['retry']:g}"]
    if values["cache"] is not None:
        words += ["--cache", os.path.abspath(values["cache"])]
    if values["cache_size"] is not None:
        words += ["--cache-size", str(values["cache_size"])]
    return words


def reading_of(values: Values) -> Reading:
    """Return how an object is to be read. Raises UsageError for an option of that without an object."""
    from statepipe.objectstore.scheme import is_address, local_path
    from statepipe.objectstore.settings import Reading

    file = values.get("file")
    named = [key for key in ("retry", "cache", "cache_size") if values.get(key) is not None]
    if named and not (file is not None and is_address(file) and local_path(file) is None):
        option = f"--{named[0].replace('_', '-')}"
        raise UsageError(f"{option} is for an object", hint=f"leave {option} out, or name FILE by its address: s3://…")
    given = {key: values[key] for key in named}
    return Reading(**given, tell=context().warn)


def _words_of_keys(values: Values) -> list[str]:
    named = [os.path.abspath(path) for path in values["identity"] if named_by(path) is None]
    words = [word for path in named for word in ("-i", path)]
    file = values["passphrase_file"]
    if file is not None and named_by(file) is None:
        return [*words, "--passphrase-file", os.path.abspath(file)]
    return [*words, *(["-p"] if _given(values, PASSPHRASES) else [])]


def keys_of(values: Values) -> Keys:
    """Return what opens an encrypted state. Keys are read only if it needs them, and NoKeyError is raised then."""
    from statepipe.state.file import Keys

    def identities() -> Sequence[Identity]:
        from statepipe.cli.passphrases import passphrase
        from statepipe.stages.agekeys import identities

        completed = with_defaults("decrypt", values)
        if not _given(completed, _IDENTITIES):
            hint = "give -i FILE, or -p for a passphrase, or name identities in the configuration"
            raise NoKeyError(f"{values['file']} is encrypted, and no key was given", hint=hint)
        world = context()
        return identities(completed["identity"], passphrase(completed, world), world)

    def openpgp() -> Stage:
        return find("decrypt").build(values, context())

    return Keys(identities, openpgp, reading_of(values))
