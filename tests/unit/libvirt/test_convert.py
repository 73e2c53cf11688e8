"""convert, without libvirt: what goes in comes out, and nothing has a name that is not whole."""

from __future__ import annotations

import gzip
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from statepipe.errors import IntegrityError, StatepipeError, TruncatedError, UsageError
from statepipe.formats.libvirtimage import GZIP, LZOP, RAW, SPARSE, TEXT_LIMIT, ZSTD, Domain, beginning
from statepipe.libvirt.convert import Conversion, Converted, convert, read_xml
from statepipe.qemu.disks import fingerprint
from statepipe.stage import Buffer
from statepipe.stages.agekeys import read_identities
from statepipe.stages.packing import choose
from statepipe.state.file import Keys
from statepipe.state.inspect import inspect
from statepipe.state.verify import verify_state
from tests import streams
from tests.agefiles import KEY_FILE, sealed
from tests.statefiles import DOMAIN, NO_KEYS, cut, layout, load, noise, noisy_stream, state_file, unasked
from tests.world import world

STREAM = noisy_stream()
PAUSED = (
    streams.head()
    + streams.ram_start()
    + streams.ram(noise(0, "pc.ram"))
    + streams.ram(noise(1, "pc.ram"), kind=3)
    + streams.globalstate(4, b"paused")
    + b"\0"
    + streams.vmdesc("globalstate")
)
DISK = {"path": "/srv/web.img", "unknown": "it was in use"}
OTHER = b"<domain><name>other</name></domain>"


def how(image: int | None = None, **more: Any) -> Conversion:
    words: dict[str, Any] = {"words": [], "seal": [], "xml": None, "overwrite": False} | more
    return Conversion(choose("zstd:3").packing(lambda: 0.0), image=image, **words)


@pytest.fixture
def put(tmp_path: Path) -> Callable[[bytes], str]:
    def write(data: bytes) -> str:
        (tmp_path / "from").write_bytes(data)
        return str(tmp_path / "from")

    return write


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return tmp_path / "new"


def image(domain: Domain = DOMAIN, stream: bytes = STREAM) -> bytes:
    return beginning(domain, RAW, spare=77) + stream


def test_an_image_becomes_a_state_with_all_that_a_state_has(put: Callable[[bytes], str], new: Path) -> None:
    path = put(beginning(DOMAIN, GZIP) + gzip.compress(STREAM))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    done = convert(path, str(new), NO_KEYS, how())
    assert done[:3] == (DOMAIN, len(STREAM), new.stat().st_size) and done.doubts is not None
    assert stat.S_IMODE(new.stat().st_mode) == 0o600
    assert verify_state(str(new), NO_KEYS) | {"size": 0, "file": ""} == {
        **{"file": "", "size": 0, "format": "statepipe state", "bytes": len(STREAM)},
        **{"digest": True, "proof": "vmdesc", "index": True, "raw": False},
    }
    facts = inspect(str(new), NO_KEYS)
    assert facts["header"] | {"writer": ""} == {
        **{"statepipe": 1, "kind": "state", "time": 1_700_000_000, "writer": "", "live": False},
        **{"name": "web\xe41", "uuid": facts["domain"]["uuid"], "run_state_before": "running"},
        **{"stages": ["compress:zstd:3"]},
    }
    assert facts["domain"]["xml"].encode() == DOMAIN.xml and facts["trailer"]["disks"] is None
    assert load(new).data == STREAM


@pytest.mark.parametrize(
    ("ran", "stream", "stopped"), [(True, PAUSED, True), (False, PAUSED, None), (True, STREAM, None)]
)
def test_whether_the_guest_ran_is_what_libvirt_says(
    put: Callable[[bytes], str], new: Path, ran: bool, stream: bytes, stopped: bool | None
) -> None:
    """libvirt stops the guest first, so the stream says that it was paused."""
    convert(put(image(DOMAIN._replace(was_running=ran), stream)), str(new), NO_KEYS, how())
    assert inspect(str(new), NO_KEYS)["trailer"].get("stopped_for_it") is stopped


def test_there_and_back_it_is_the_same_file(put: Callable[[bytes], str], new: Path) -> None:
    original = beginning(DOMAIN) + STREAM
    convert(put(original), str(new), NO_KEYS, how())
    back = new.with_name("back")
    done = convert(str(new), str(back), NO_KEYS, how(RAW))
    assert done == Converted(DOMAIN, len(STREAM), len(original), None)
    assert back.read_bytes() == original and stat.S_IMODE(back.stat().st_mode) == 0o600


def test_an_image_of_zstd_holds_a_state_file_and_all_its_facts(put: Callable[[bytes], str], new: Path) -> None:
    header = {"kind": "state", "time": 7, "qemu": "7.2", "live": True}
    path = put(state_file(cut(STREAM, 3), header=header, domain=DOMAIN, disks=[DISK], stopped_for_it=True))
    convert(path, str(new), NO_KEYS, how(ZSTD))
    data = new.read_bytes()
    start = len(beginning(DOMAIN, ZSTD))
    assert data[:start] == beginning(DOMAIN, ZSTD) and data.count(b"statepipeD") == 0
    facts = inspect(str(new), NO_KEYS)
    assert facts["header"] | {"writer": ""} == {**header, "statepipe": 1, "writer": "", "stages": ["compress:zstd:3"]}
    assert facts["trailer"]["disks"] == [DISK] and facts["trailer"]["stopped_for_it"] and "index" in facts["trailer"]
    back = new.with_name("back")
    assert "was in use" in (convert(str(new), str(back), NO_KEYS, how()).doubts or "")
    again = inspect(str(back), NO_KEYS)
    assert (
        again["trailer"]["disks"] == [DISK] and again["header"]["qemu"] == "7.2" and again["domain"] == facts["domain"]
    )
    assert again["trailer"].get("stopped_for_it") is None  # the stream says that the guest ran


def test_an_image_becomes_one_in_another_format(put: Callable[[bytes], str], new: Path) -> None:
    convert(put(beginning(DOMAIN, GZIP) + gzip.compress(STREAM)), str(new), NO_KEYS, how(RAW))
    assert new.read_bytes() == beginning(DOMAIN) + STREAM
    assert convert(str(new), str(new), NO_KEYS, how(ZSTD)).doubts is None  # it may replace itself
    assert verify_state(str(new), NO_KEYS)["digest"]


def test_another_xml_takes_the_place_of_libvirts(put: Callable[[bytes], str], new: Path) -> None:
    for number in (None, RAW, ZSTD):
        path = str(new) + str(number)
        done = convert(put(image()), path, NO_KEYS, how(number, xml=OTHER))
        assert done.domain == DOMAIN._replace(xml=OTHER)
        assert inspect(path, NO_KEYS)["domain"]["name"] == "other"


def test_the_xml_of_another_domain_is_refused(put: Callable[[bytes], str], new: Path) -> None:
    """As virsh restore refuses it: libvirt would have two domains with one guest."""
    uuid = b"<uuid>3fbf76b1-f6fe-43d6-bf76-cd41371924dc</uuid>"
    path = put(image(DOMAIN._replace(xml=b"<domain><name>vm1</name>" + uuid + b"</domain>")))
    for xml in (uuid.upper().replace(b"UUID", b"uuid"), b""):
        assert convert(path, str(new), NO_KEYS, how(None, xml=b"<domain><name>b</name>" + xml + b"</domain>"))
        new.unlink()
    with pytest.raises(UsageError, match="the XML is of another domain, b") as caught:
        convert(path, str(new), NO_KEYS, how(None, xml=b"<domain><name>b</name><uuid>0</uuid></domain>"))
    assert "keep its uuid" in (caught.value.hint or "") and not new.exists()


@pytest.mark.parametrize(
    ("stream", "facts", "ran"), [(STREAM, {}, True), (PAUSED, {}, False), (PAUSED, {"stopped_for_it": True}, True)]
)
def test_a_state_that_libvirt_did_not_save_needs_an_xml(
    put: Callable[[bytes], str], new: Path, stream: bytes, facts: dict[str, Any], ran: bool
) -> None:
    path = put(state_file(cut(stream, 2), **facts))
    with pytest.raises(StatepipeError, match="was not saved through libvirt") as caught:
        convert(path, str(new), NO_KEYS, how(RAW))
    assert caught.value.hint is not None and "--xml FILE" in caught.value.hint and not new.exists()
    assert convert(path, str(new), NO_KEYS, how(RAW, xml=OTHER)).domain == Domain(OTHER, b"", ran)


@pytest.mark.parametrize("number", [RAW, ZSTD])
def test_a_disk_that_changed_is_told_because_libvirt_compares_none(
    put: Callable[[bytes], str], new: Path, number: int
) -> None:
    disk = new.with_name("disk.img")
    disk.write_bytes(b"as saved")
    path = put(state_file(cut(STREAM, 3), domain=DOMAIN, disks=[fingerprint(str(disk))]))
    assert convert(path, str(new), NO_KEYS, how(number)).doubts is None
    disk.write_bytes(b"written since")
    doubts = convert(path, str(new), NO_KEYS, how(number)).doubts
    assert doubts is not None and "virsh restore compares no disks" in doubts and str(disk) in doubts


@pytest.mark.parametrize("number", [None, RAW])
def test_a_managed_save_that_libvirt_uses_up_meanwhile_is_told(
    put: Callable[[bytes], str], new: Path, number: int | None
) -> None:
    path = put(image())

    def start_the_domain(upstream: Iterator[Buffer]) -> Iterator[Buffer]:
        os.unlink(path)
        yield from upstream

    doubts = convert(path, str(new), NO_KEYS, how(number, words=[("checksum", start_the_domain)])).doubts
    assert doubts is not None and "was removed while it was read" in doubts
    assert load(new).data == STREAM


def test_an_encrypted_state_is_opened_with_its_key(put: Callable[[bytes], str], new: Path) -> None:
    keys = Keys(lambda: read_identities(str(KEY_FILE), world()), unasked)
    convert(put(sealed(state_file(cut(STREAM, 3), domain=DOMAIN))), str(new), keys, how(RAW))
    assert new.read_bytes() == beginning(DOMAIN) + STREAM


# --- what is refused, and leaves nothing


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (state_file(cut(STREAM, 2)), UsageError, "is a state file already"),
        (STREAM, UsageError, r"is no save image of libvirt's"),
        (image().replace(b"QemudSave", b"QemudPart"), TruncatedError, "libvirt has not finished"),
        (beginning(DOMAIN, LZOP) + b"\x89LZO", StatepipeError, "no lzop is built in"),
        (beginning(DOMAIN, SPARSE) + STREAM, StatepipeError, "mapped-ram"),
        (image()[:-1], TruncatedError, "stops before its end"),
        (image() + b"x", IntegrityError, "continues after the end"),
        (b"<domain/>", IntegrityError, "is not a saved state"),
    ],
)
def test_what_is_no_whole_image_becomes_no_state(
    put: Callable[[bytes], str], new: Path, data: bytes, kind: type[StatepipeError], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        convert(put(data), str(new), NO_KEYS, how())
    assert not new.exists() and list(new.parent.iterdir()) == [new.with_name("from")]
    assert kind is TruncatedError or kind is IntegrityError or caught.value.hint is not None


def test_a_stream_alone_becomes_no_image(put: Callable[[bytes], str], new: Path) -> None:
    with pytest.raises(StatepipeError, match="a stream without facts") as caught:
        convert(put(STREAM), str(new), NO_KEYS, how(RAW, xml=OTHER))
    assert caught.value.hint is not None and "statepipe save NEW" in caught.value.hint


@pytest.mark.parametrize("number", [RAW, ZSTD])
def test_a_damaged_state_becomes_no_image(put: Callable[[bytes], str], new: Path, number: int) -> None:
    file = state_file(cut(STREAM, 4), domain=DOMAIN, index=True)
    pieces = layout(file)
    for place in (pieces[3].start + 30, pieces[-3].start + 40, pieces[-2].start - 1, len(file) - 20):
        damaged = bytearray(file)
        damaged[place] ^= 8
        with pytest.raises(IntegrityError):
            convert(put(bytes(damaged)), str(new), NO_KEYS, how(number))
        assert not new.exists()


@pytest.mark.parametrize("number", [RAW, ZSTD])
def test_an_end_mark_that_is_elsewhere_is_found(put: Callable[[bytes], str], new: Path, number: int) -> None:
    path = put(state_file(cut(STREAM, 4), domain=DOMAIN, end_mark=5))
    with pytest.raises(IntegrityError, match="end mark is not where the trailer says"):
        convert(path, str(new), NO_KEYS, how(number))
    assert not new.exists()


@pytest.mark.parametrize("number", [None, RAW])
def test_only_a_saved_state_is_replaced_unless_told(put: Callable[[bytes], str], new: Path, number: int | None) -> None:
    path = put(image())
    new.write_bytes(b"QFI\xfb a disk")
    with pytest.raises(UsageError, match="not a saved state") as caught:
        convert(path, str(new), NO_KEYS, how(number))
    assert (
        caught.value.hint is not None and "--overwrite" in caught.value.hint and new.read_bytes() == b"QFI\xfb a disk"
    )
    convert(path, str(new), NO_KEYS, how(number, overwrite=True))
    convert(path, str(new), NO_KEYS, how(number))
    with_image = how(number)
    new.write_bytes(image())
    if number is None:
        with pytest.raises(UsageError):
            convert(path, str(new), NO_KEYS, with_image)
    else:
        convert(path, str(new), NO_KEYS, with_image)


@pytest.mark.parametrize("number", [None, RAW, ZSTD])
def test_the_state_of_another_domain_is_not_replaced_unless_told(
    put: Callable[[bytes], str], new: Path, number: int | None
) -> None:
    path = put(image())
    other = Domain(OTHER, b"", was_running=True)
    new.write_bytes(before := image(other) if number else state_file(cut(STREAM, 2), header={"name": "other"}))
    with pytest.raises(UsageError, match="the state of another guest, other, and this one is web\xe41"):
        convert(path, str(new), NO_KEYS, how(number))
    assert new.read_bytes() == before
    convert(path, str(new), NO_KEYS, how(number, overwrite=True))
    convert(path, str(new), NO_KEYS, how(number))


def test_the_xml_of_a_file_is_a_domains(tmp_path: Path) -> None:
    path = tmp_path / "domain.xml"
    path.write_bytes(OTHER)
    assert read_xml(str(path)) == OTHER
    for data, words in (
        (b"", "no name of a domain"),
        (b"<network/>", "no name of a domain"),
        (OTHER + b" " * TEXT_LIMIT, "too long"),
    ):
        path.write_bytes(data)
        with pytest.raises(StatepipeError, match=words) as caught:
            read_xml(str(path))
        assert caught.value.hint is not None and "dumpxml" in caught.value.hint
    with pytest.raises(StatepipeError, match="No such file"):
        read_xml(str(tmp_path / "none"))
