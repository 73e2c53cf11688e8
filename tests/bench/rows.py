"""The rows of the table: what is compared with what, and what it should come to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

from tests.bench import network
from tests.bench.adapt import rows
from tests.bench.data import ROOT, Inputs
from tests.bench.encryption import decrypt, encrypt, openpgp, sealed
from tests.bench.far import far
from tests.bench.lazy import lazy, lazy_huge
from tests.bench.libvirt import virsh_save
from tests.bench.measure import Broken, Job, Series, interleave, spread
from tests.bench.migration import migration
from tests.bench.objects import lazy_objects, objects
from tests.bench.pairs import ZSTD, Bench, pair, statepipe
from tests.bench.secure import tls_network
from tests.bench.stream import chunks
from tests.bench.table import Row

START_RUNS = 15
"""Starts are short and cheap, and noisy."""

ALONE_RUNS = 9
"""A small guest takes a fifth of a second."""


def compress(bench: Bench) -> list[Row]:
    """zstd at level 1 on all cores, by the clock and by the size of what comes out."""
    plain, size = bench.inputs.plain, bench.inputs.size
    ours = Job("statepipe", statepipe("compress", "zstd:1"), size, plain)
    return [pair(bench, "compress zstd:1", ours, Job("zstd -T0 -1", ZSTD, size, plain), 1.25), _size(bench)]


def _size(bench: Bench) -> Row:
    what, ours = "compress zstd:1, size", _our_file(bench).stat().st_size
    if shutil.which("zstd") is None:
        return Row(what, f"{ours / 1e6:.1f} MB", "zstd is not installed")
    theirs = bench.inputs.compressed("zstd.zst", ZSTD).stat().st_size
    ratio = ours / theirs
    return Row(what, f"{ours / 1e6:.1f} MB", f"zstd -T0 -1: {theirs / 1e6:.1f} MB", ratio, "<= 1.01", ratio <= 1.01)


def _our_file(bench: Bench) -> Path:
    return bench.inputs.compressed("ours.zst", statepipe("compress", "zstd:1"))


def decompress(bench: Bench) -> list[Row]:
    """Each on the file it made itself, and both on ours."""
    size, ours = bench.inputs.size, _our_file(bench)
    mine = Job("statepipe", statepipe("decompress"), size, ours)
    rows = [pair(bench, "decompress, our file for both", mine, _unzstd(size, ours), 1.4)]
    if shutil.which("zstd") is not None:
        theirs = bench.inputs.compressed("zstd.zst", ZSTD)
        rows.append(pair(bench, "decompress, each its own file", mine, _unzstd(size, theirs), 1.4))
    return rows


def _unzstd(size: int, source: Path) -> Job:
    return Job("zstd -d", ("zstd", "-q", "-d", "-c"), size, source)


ALONE = 158_000_000
"""Bytes of the first part of a made stream that stands for a small guest: as many as the real sample has."""


def alone(bench: Bench) -> list[Row]:
    """A small guest alone, of which start-up is a fifth: one real stream, or the first part of a made one."""
    inputs = bench.inputs
    folder = inputs.folder / "alone"
    folder.mkdir(exist_ok=True)
    small = inputs.sample
    if small is None:
        small = folder / "plain"
        small.write_bytes(b"".join(chunks(inputs.plain, 0, min(ALONE, inputs.size))))
    one = Inputs(folder, small, small.stat().st_size, inputs.origin, inputs.sample, inputs.part)
    few = Bench(one, max(bench.rounds, ALONE_RUNS))
    plain, size = one.plain, one.size
    ours = Job("statepipe", statepipe("compress", "zstd:1"), size, plain)
    rows = [
        pair(few, "compress zstd:1", ours, Job("zstd -T0 -1", ZSTD, size, plain), 1.1),
        *encrypt(few, 1.1),
        *decompress(few)[:1],
        *decrypt(few),
        *(row for row in sealed(few) if "gpg" not in row.peer),
    ]
    return [replace(row, what=f"{size / 1e6:.0f} MB alone: {row.what}") for row in rows]


def through_pipes(bench: Bench) -> list[Row]:
    """A cat before it and one behind, as in life: they need the cores, too."""
    size, plain, ours = bench.inputs.size, bench.inputs.plain, _our_file(bench)
    jobs = [
        ("compress zstd:1", statepipe("compress", "zstd:1"), "zstd -T0 -1", ZSTD, plain),
        ("decompress", statepipe("decompress"), "zstd -d", ("zstd", "-q", "-d", "-c"), ours),
    ]
    return [
        pair(
            bench,
            f"{what}, between two pipes",
            Job("statepipe", mine, size, source, piped=True),
            Job(name, peer, size, source, piped=True),
        )
        for what, mine, name, peer, source in jobs
    ]


def gzip(bench: Bench) -> list[Row]:
    """Level 1 against pigz by the clock and against gzip by the size; reading, each the file of the other's making."""
    plain, size = bench.inputs.plain, bench.inputs.size
    ours = Job("statepipe", statepipe("compress", "gzip"), size, plain)
    rows = [
        pair(bench, "compress gzip", ours, Job("pigz -1", ("pigz", "-1", "-c"), size, plain), 2.5),
        _sizes(bench, "gzip", ("gzip", "-1", "-c"), "<= 1", 1.0),
    ]
    return rows + _reads(bench, "gzip", ("gzip", "-1", "-c"), ("pigz", "-d", "-c"))


def lz4(bench: Bench) -> list[Row]:
    """Level 1 against lz4(1), both ways."""
    plain, size = bench.inputs.plain, bench.inputs.size
    ours = Job("statepipe", statepipe("compress", "lz4"), size, plain)
    rows = [
        pair(bench, "compress lz4", ours, Job("lz4 -1", ("lz4", "-1", "-c"), size, plain), 1.5),
        _sizes(bench, "lz4", ("lz4", "-1", "-c")),
    ]
    return rows + _reads(bench, "lz4", ("lz4", "-1", "-c"), ("lz4", "-d", "-c"))


def slow(bench: Bench) -> list[Row]:
    """bzip2 and xz, both ways, on a part of the stream: they take a second for 20 MB."""
    inputs = bench.inputs
    part = Inputs(inputs.folder, inputs.part, inputs.part.stat().st_size, inputs.origin, None, inputs.part)
    bench = Bench(part, bench.rounds)
    rows = []
    for codec, peer, reader in (
        ("bzip2", ("pbzip2", "-c"), ("pbzip2", "-d", "-c")),
        ("xz:1", ("xz", "-T0", "-1", "-c"), ("xz", "-T0", "-d", "-c")),
    ):
        ours = Job("statepipe", statepipe("compress", codec), part.size, part.plain)
        rows.append(pair(bench, f"compress {codec}", ours, Job(" ".join(peer), peer, part.size, part.plain)))
        if shutil.which(peer[0]) is not None:
            rows += [_sizes(bench, codec, peer), *_reads(bench, codec, peer, reader)]
    return rows


def _sizes(bench: Bench, codec: str, peer: Sequence[str], target: str = "", limit: float | None = None) -> Row:
    ours = bench.inputs.compressed(f"ours.{codec}", statepipe("compress", codec)).stat().st_size
    theirs = bench.inputs.compressed(f"peer.{codec}", peer).stat().st_size
    ratio = ours / theirs
    words = f"{' '.join(peer)}: {theirs / 1e6:.1f} MB"
    ok = None if limit is None else ratio <= limit
    return Row(f"compress {codec}, size", f"{ours / 1e6:.1f} MB", words, ratio, target, ok)


def _reads(bench: Bench, codec: str, packer: Sequence[str], reader: Sequence[str]) -> list[Row]:
    """Our file and the packer's, each for both readers."""
    size = bench.inputs.size
    rows = []
    for whose, path in (
        ("our file", bench.inputs.compressed(f"ours.{codec}", statepipe("compress", codec))),
        (f"{packer[0]}'s file", bench.inputs.compressed(f"peer.{codec}", packer)),
    ):
        mine = Job("statepipe", statepipe("decompress"), size, path)
        rows.append(pair(bench, f"decompress {codec}, {whose}", mine, Job(" ".join(reader), reader, size, path)))
    return rows


def save(bench: Bench) -> list[Row]:
    """A whole guest through standard input into a file; the peers get a part of it, and are compared by the byte."""
    inputs = bench.inputs
    state, packed = inputs.folder / "state", inputs.folder / "packed"
    ours = Job("statepipe", statepipe("save", str(state)), inputs.size, inputs.plain, makes=state)
    part = inputs.part.stat().st_size
    gzip = Job(f"gzip -c of {part / 1e6:.0f} MB", ("gzip", "-c"), part, inputs.part, packed)
    pigz = Job(f"pigz -c of {part / 1e6:.0f} MB", ("pigz", "-c"), part, inputs.part, packed)
    return [pair(bench, "save, to a file", ours, gzip, 15), pair(bench, "save, to a file", ours, pigz)]


def start(bench: Bench) -> list[Row]:
    """What a filter costs that has nothing to do. zstd's figure is there to compare with, not to reach."""
    jobs = [Job("statepipe", statepipe("compress"), 0)]
    if shutil.which("zstd") is not None:
        jobs.append(Job("zstd", ZSTD, 0))
    mine, *theirs = interleave(jobs, max(bench.rounds, START_RUNS))
    figures = [_milliseconds(each) for each in (mine, *theirs)]
    peer = f"zstd: {figures[1]}" if theirs else "zstd is not installed"
    runs = {each.name: asdict(each) for each in (mine, *theirs)}
    return [Row("start-up CPU, empty input", figures[0], peer, None, "<= 40 ms", mine.cpu <= 0.040, runs)]


def _milliseconds(series: Series) -> str:
    return f"{series.cpu * 1e3:.0f} ms ±{spread([run.cpu for run in series.runs]):.0%}"


def memory(bench: Bench) -> list[Row]:
    """The largest resident memory of ours over the whole input."""
    inputs = bench.inputs
    state = inputs.folder / "state"
    jobs = [
        Job("compress", statepipe("compress", "zstd:1"), inputs.size, inputs.plain),
        Job("decompress", statepipe("decompress"), inputs.size, _our_file(bench)),
        Job("save", statepipe("save", str(state)), inputs.size, inputs.plain, makes=state),
    ]
    series = interleave(jobs, 1)
    largest = max(each.rss for each in series)
    words = ", ".join(f"{each.name} {each.rss / 1e6:.0f}" for each in series)
    runs = {each.name: asdict(each) for each in series}
    return [Row("resident memory", f"{words} MB", "", None, "< 150 MB", largest < 150e6, runs)]


def parser(bench: Bench) -> list[Row]:
    """The stream parser alone, by CPU seconds; ordinary pages are what most of a stream is made of."""
    sample = [] if bench.inputs.sample is None else [str(bench.inputs.sample)]
    figures = [_parse(sample) for _ in range(bench.rounds)]
    rows = [_parser_row("parser, ordinary RAM pages", [each["ordinary"] for each in figures], 3)]
    if sample:
        rows.append(_parser_row("parser, a real stream", [each["sample"] for each in figures], None))
    return rows


def _parse(sample: Sequence[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.parsing", *sample]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise Broken(f"'{' '.join(command)}': {done.stderr.strip()}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _parser_row(what: str, rates: Sequence[float], target: float | None) -> Row:
    rate = median(rates) / 1e9
    ok = None if target is None else rate >= target
    ours = f"{rate:.1f} GB/CPU s ±{spread(rates):.0%}"
    return Row(what, ours, "", None, "" if target is None else f">= {target:g}", ok, {"bytes_per_cpu_second": rates})


def checksum(bench: Bench) -> list[Row]:
    """Digests. The peers only read; ours passes everything on as well."""
    plain, size = bench.inputs.plain, bench.inputs.size
    return [
        pair(
            bench,
            f"checksum {algorithm}",
            Job("statepipe", statepipe("checksum", algorithm), size, plain),
            Job(peer, (peer,), size, plain),
        )
        for algorithm, peer in (("sha256", "sha256sum"), ("blake3", "b3sum"))
    ]


def passing(bench: Bench) -> list[Row]:
    """Passing bytes on between two pipes: past stages that only count, and past one that follows a guest's stream."""
    noise, plain, size = bench.inputs.noise(), bench.inputs.plain, bench.inputs.size

    def piped(name: str, command: Sequence[str], source: Path) -> Job:
        return Job(name, command, size, source, piped=True)

    throttle = piped("statepipe", statepipe("throttle", "unlimited"), noise)
    counting = piped("statepipe", statepipe("progress"), noise)
    following = piped("statepipe", statepipe("progress"), plain)
    cat, pv = piped("cat", ("cat",), noise), piped("pv -q", ("pv", "-q"), noise)
    return [
        pair(bench, "throttle, between two pipes", throttle, cat, 0.9),
        pair(bench, "throttle, between two pipes", throttle, pv, 1.0),
        pair(bench, "progress, between two pipes", counting, cat, 0.9),
        pair(bench, "progress, between two pipes", counting, pv, 1.0),
        pair(bench, "progress of a guest's stream", following, piped("pv -q", ("pv", "-q"), plain)),
    ]


def adapt(bench: Bench) -> list[Row]:
    """zstd:auto into sinks of given speeds, beside the best level for each."""
    return rows(bench.inputs)


def plain_network(bench: Bench) -> list[Row]:
    """A stream over TCP on the loopback, to /dev/null; both ends measured."""
    peers = {"nc": (network.nc, 1.0), "socat": (network.socat, 1.0), "mbuffer": (network.mbuffer, 1.3)}
    ours = network.ours(bench.inputs, "tcp")
    return [
        pair(bench, "send and recv, tcp", ours, make(bench.inputs), target)
        for name, (make, target) in peers.items()
        if network.is_there(name)
    ]


ROWS: dict[str, Callable[[Bench], list[Row]]] = {
    "compress": compress,
    "decompress": decompress,
    "alone": alone,
    "piped": through_pipes,
    "gzip": gzip,
    "lz4": lz4,
    "slow": slow,
    "encrypt": encrypt,
    "decrypt": decrypt,
    "sealed": sealed,
    "openpgp": openpgp,
    "save": save,
    "virsh": virsh_save,
    "start": start,
    "memory": memory,
    "parser": parser,
    "checksum": checksum,
    "pass": passing,
    "tcp": plain_network,
    "tls": tls_network,
    "far": far,
    "adapt": adapt,
    "migrate": migration,
    "lazy": lazy,
    "lazy4g": lazy_huge,
    "object": objects,
    "lazyobject": lazy_objects,
}

BY_NAME = ("lazy4g", "object")
"""Rows that are run only if they are named."""
