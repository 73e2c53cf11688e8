"""What QEMU gets before its guest runs: the parts of the state, and the commands of a postcopy migration between them.

The devices are those of the file, byte for byte. RAM's list of blocks is written anew, as it tells the sizes of pages
at the destination. Of the commands of the save, only SWITCHOVER_START (QEMU 10 and later) is kept: it prepares devices
for their state.

One page is discarded, without which QEMU would not begin to listen. The pages of the working set follow, and QEMU loads
them as an ordinary migration does. From the discard on, QEMU has no huge pages. Pages that came before it might be in
one, and then the pages around them would read as zeros and never be asked for (seen: QEMU fails over the first of them
that arrives).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from statepipe.formats.qemu import postcopy
from statepipe.formats.qemu.postcopy import Block
from statepipe.formats.qemu.sections import COMMAND, START, SWITCHOVER_START
from statepipe.lazy.workingset import held_back
from statepipe.qemu.late_pages import WITHOUT, NoLatePages
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


def opening(store: PageStore, blocks: Sequence[Block]) -> tuple[bytes, bytes]:
    """Return what stands before and after the first pages; the second has the destination run the guest."""
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
    number, page = held_back(store)
    parts.append(postcopy.discard(blocks[number].name, [(page * postcopy.PAGE_SIZE, postcopy.PAGE_SIZE)]))
    return b"".join(parts), postcopy.package(postcopy.without_return_path(store.devices()))
