"""What QEMU gets before any page: the parts of the state, and the commands of a postcopy migration between them.

The devices are those of the file, byte for byte. RAM's list of blocks is written anew, as it tells the sizes of pages
at the destination; and one page is discarded, without which the destination would not begin to listen. Of the commands
of the save, only SWITCHOVER_START (QEMU 10 and later) is kept: it prepares devices for their state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from statepipe.formats.qemu import postcopy
from statepipe.formats.qemu.postcopy import Block
from statepipe.formats.qemu.sections import COMMAND, START, SWITCHOVER_START
from statepipe.qemu.late_pages import NoLatePages
from statepipe.state.pagestore import PageStore


def demand_servable(store: PageStore) -> None:
    """Raises NoLatePages for a state whose pages cannot be sent one by one."""
    outline = store.index.outline
    if outline.unserved:
        raise NoLatePages(f"{store.name} cannot be loaded lazily: {outline.unserved}", hint=WITHOUT)
    if outline.page_size != postcopy.PAGE_SIZE:
        raise NoLatePages(f"the pages of this guest have {outline.page_size} bytes, not 4096", hint=WITHOUT)


def blocks_of(store: PageStore, sizes: Mapping[str, int]) -> list[Block]:
    """Return the state's RAM blocks, in its order, with the page sizes of a QEMU that has `sizes`.

    Raises NoLatePages.
    """
    found = [Block(block.name, block.length, sizes.get(block.name, 0)) for block in store.index.outline.blocks]
    if lacking := [block.name for block in found if not block.page_size]:
        raise NoLatePages(f"this QEMU lacks RAM that the guest had: {', '.join(lacking)}", hint=WITHOUT)
    if huge := next((block for block in found if block.page_size > postcopy.PAGE_SIZE), None):
        what = f"the guest's memory {huge.name!r} is in pages of {huge.page_size >> 10} KiB"
        raise NoLatePages(what, hint=f"give it memory without huge pages, or {WITHOUT}")
    return found


WITHOUT = "load it without --lazy"


def opening(store: PageStore, blocks: Sequence[Block]) -> bytes:
    """Everything up to the command that has the destination run the guest."""
    outline = store.index.outline
    ending = postcopy.footer(outline.ram_section) if outline.footers else b""
    parts = [store.head(), postcopy.advise(blocks)]
    for piece in outline.pieces:
        if piece.kind == START and piece.number == outline.ram_section:
            parts.append(postcopy.ram_setup(outline.ram_section, blocks, ending))
        elif piece.kind == COMMAND:
            if piece.number == SWITCHOVER_START:  # without a payload: its frame, perhaps damaged, is not read
                parts.append(postcopy.command(SWITCHOVER_START))
        else:
            parts.append(store.stream_bytes(piece.start, piece.end))
    largest = max(blocks, key=lambda block: block.length)
    parts.append(postcopy.discard(largest.name, [(0, largest.page_size)]))
    return b"".join([*parts, postcopy.package(postcopy.without_return_path(store.devices()))])
