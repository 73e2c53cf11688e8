"""The doors of the command line: words, whole lines, sizes, addresses, and the files that stand in for them."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from contextlib import suppress
from random import Random

from statepipe.cli.grammar import parse, parse_word
from statepipe.cli.verbs import VERBS
from statepipe.ends.address import parse_address
from statepipe.ends.configfile import load_config
from statepipe.errors import StatepipeError
from statepipe.formats.openpgp import fingerprint
from statepipe.objectstore.address import parse_prefix
from statepipe.stages.checksum import read_digest
from statepipe.stages.codec import parse_codec
from statepipe.trust.pins import check_name
from statepipe.units import format_rate, format_size, parse_rate, parse_size
from tests.fuzz.harness import Door
from tests.fuzz.mutation import mutated, odd_text

WORDS = (
    *("compress:zstd:3", "zstd:auto,min=1,max=5", "gzip:6", "decompress", "encrypt:age1xyz,armor", "decrypt:i=key"),
    *("checksum:sha256,to=/x", "verify:abcd,algorithm=md5", "throttle:100M,until=switchover", "progress:size=4G"),
    *("tee:/x,on-error=warn", "external:tr a b,,c", "external:sh -c 'x y'", "encrypt:r=gpg:KEY,r=age1"),
)
PIECES = (
    *(":", ",", "=", "-", "--", "--help", "-r", "auto", "zstd", "external", "'", '"', "\\", "sha256", "9"),
    *("%s", "%(x)s"),
)
LINES = (
    *("save --qmp /s --then quit f", "load f -- qemu -S -- x", "send -r age1 tls://h f", "ps --watch 2"),
    *("receive tls://:1 --serve 3 -- q", "migrate --qmp /s tls://h --retry 6", "recv --insecure tcp://:1"),
    *("pair --listen --name x", "pki issue a b", "rate 7 10M", "tunnel unix:///a tls://b", "inspect --json f"),
    "resolve --qmp /s here",
)
SIZES = ("1.5GiB", "64K", "80Mbit", "unlimited", "10M/s", "1e5", "0")
ADDRESSES = (
    *("tls://host:1", "tls://[2001:db8::7%eth0]:20490", "tcp://:99999", "unix:///tmp/x", "ssh://u@h:22/p", "host"),
    *("ssh://[::1]/x", "ssh://-o@x/y", "tcp://a@b:1", "s3://bucket/key/k", "gs://b/../k", "az://$web/"),
)


def one_word(data: bytes) -> None:
    text = os.fsdecode(data).replace("\0", "")
    with contextlib.redirect_stdout(io.StringIO()):
        row, values = parse_word(text)
    assert row.name and isinstance(values, dict)


def one_line(data: bytes) -> None:
    """The same arguments for every verb."""
    words = os.fsdecode(data).replace("\0", "").split(" ")
    for verb in VERBS:
        with contextlib.redirect_stdout(io.StringIO()), suppress(StatepipeError, SystemExit):
            parse(verb, words[1:])


def one_figure(data: bytes) -> None:
    """Whatever is not a whole sentence."""
    text = os.fsdecode(data).replace("\0", "")
    for look in (parse_size, parse_rate, parse_codec, check_name, fingerprint):
        with suppress(StatepipeError):
            look(text)  # type: ignore[operator]
    with suppress(StatepipeError):
        assert format_size(parse_size(text)) and format_rate(parse_rate(text))
    with suppress(StatepipeError):
        place = parse_prefix(text)
        assert parse_prefix(str(place)) == place
    address = parse_address(text)
    assert parse_address(str(address)) == address


def settings(data: bytes) -> None:
    """The configuration, and a file that a digest is read from."""
    with tempfile.NamedTemporaryFile(prefix="fuzz") as file:
        file.write(data)
        file.flush()
        with suppress(StatepipeError):
            read_digest(file.name)
        os.environ["STATEPIPE_CONFIG"] = file.name
        load_config()


TOML = (
    b'codec = "zstd:3"\nrecipients = ["age1x", "gpg:KEY"]\nidentities = ["~/key", "~nobody/x"]\n[a.b]\nc = 1979-05-27\n'
)


SETTINGS = {
    "lists in lists": lambda: b"codec = " + b"[" * 100_000,
    "a key of thousands of parts": lambda: b"x." * 20_000 + b"y = 1\n",
    "a table of thousands of parts": lambda: b"[" + b"'x' . " * 20_000 + b"y]\n",
}


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def make_settings(random: Random) -> bytes:
    deep = b"codec = " + b"[" * random.choice((5, 5000))
    parts = (TOML, deep, b"x." * random.choice((3, 3000)) + b"y = 1\n", b"a" * 64)
    return mutated(random, random.choice(parts), parts)


SETTINGS = {
    "lists in lists": lambda: b"codec = " + b"[" * 100_000,
    "a key of thousands of parts": lambda: b"x." * 20_000 + b"y = 1\n",
    "a table of thousands of parts": lambda: b"[" + b"'x' . " * 20_000 + b"y]\n",
}


DOORS = {
    "words": Door(one_word, lambda random: _encoded(odd_text(random, WORDS, PIECES))),
    "lines": Door(one_line, lambda random: _encoded(odd_text(random, LINES, (*PIECES, " ", " --qmp ", " -- ")))),
    "figures": Door(one_figure, lambda random: _encoded(odd_text(random, SIZES + ADDRESSES, PIECES + ADDRESSES))),
    "settings": Door(settings, make_settings, SETTINGS),
}
