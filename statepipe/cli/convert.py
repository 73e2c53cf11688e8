"""The verb convert: parsed values become a call of libvirt/convert.py."""

from __future__ import annotations

import os
import shlex

from statepipe.cli.keys import PASSPHRASES, keys_of, seals
from statepipe.cli.messages import say, warn
from statepipe.cli.states import save_words
from statepipe.cli.verb import Values, is_given
from statepipe.ends.configfile import load_config
from statepipe.errors import StatepipeError, UsageError
from statepipe.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from statepipe.libvirt.convert import Conversion


def run_convert(name: str, values: Values) -> int:
    """Convert a save image of libvirt's to a state file, or a state file to a save image."""
    from statepipe.cli.report import converted
    from statepipe.libvirt.convert import convert

    values = _with_source(values)
    keys = keys_of(values if values["to_image"] else values | dict.fromkeys(PASSPHRASES))
    how = _conversion(values)
    target = "/dev/stdout" if values["target"] == "-" else values["target"]
    done = convert(values["file"], target, keys, how)
    say(converted(values["target"], done))
    if done.doubts:
        warn(name, done.doubts)
    return 0


def _with_source(values: Values) -> Values:
    """Return the values with `file`, what to convert, also for a domain's managed save.

    Raises UsageError, and StatepipeError for a domain without a managed save.
    """
    if values["domain"] is None:
        if values["file"] is None:
            hint = "for example: statepipe convert web1.save web1.state; or name a domain with a managed save: --domain"
            raise UsageError("convert needs a FILE and the NEW file", hint=hint)
        _demand_file(values["file"], values["target"])
        return values
    if values["file"] is not None:
        raise UsageError(f"--domain and '{values['file']}' exclude each other", hint="leave one of them out")
    from statepipe.libvirt.images import managed_save

    return values | {"file": managed_save(values["domain"], values["connect"])}


def _demand_file(path: str, target: str) -> None:
    """Raises StatepipeError for what is no file, but may be the name of a domain."""
    if path != "-" and "/" not in path and not os.path.lexists(path):
        command = shlex.join(["statepipe", "convert", "--domain", path, target])
        raise StatepipeError(f"there is no file {path}", hint=f"for libvirt's managed save of a domain: {command}")


def _conversion(values: Values) -> Conversion:
    """Raises UsageError for what an image cannot be."""
    from statepipe.libvirt.convert import IMAGES, Conversion, read_xml

    packing, words, sealing = save_words(values["words"], "convert")
    image = values["to_image"]
    if image is None:
        seal = seals(values, sealing)
    else:
        seal = []
        _demand_plain(values, bool(sealing))
        if image == "raw" and any(word.partition(":")[0] in ("compress", "zstd") for word in values["words"]):
            raise UsageError("a raw image is not compressed", hint="--to-image=zstd is; libvirt 9.0 cannot restore it")
    xml = None if values["xml"] is None else read_xml(values["xml"])
    return Conversion(packing, words, seal, None if image is None else IMAGES[image], xml, values["overwrite"])


def _demand_plain(values: Values, is_sealed: bool) -> None:
    """Raises UsageError if the image would have to be encrypted."""
    given = [name for name in ("recipient", "recipients_file", "sign") if is_given(values[name])]
    if given or is_sealed:
        raise UsageError("a save image cannot be encrypted: libvirt reads it", hint="leave the recipients out")
    if load_config().recipients and not values["plain"]:
        what = "a save image cannot be encrypted, and the configuration names recipients"
        raise UsageError(what, hint="--plain writes the guest's memory as it is, for all who can read NEW")
