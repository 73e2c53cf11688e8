"""Which images a QEMU has open, and where its guest sees each: by QEMU's own word, not by its command line.

A device has a tree of block nodes, whose leaves are files, block devices or what a protocol reaches. Some lie at the
top, in what the guest writes; others below them, as backing files. What no device has, as a backup's target, is none
of the guest's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from statepipe.errors import QemuError
from statepipe.qemu.answers import file_name
from statepipe.qemu.devices import ask, place
from statepipe.qemu.process import qemu_under
from statepipe.qemu.view import View
from statepipe.shapes import Misshapen

if TYPE_CHECKING:  # asyncio takes 60 ms, which a filter need not pay
    from statepipe.qemu.monitor import Monitor

FILES = ("file", "host_device", "host_cdrom")
"""Drivers of what has a name on the host."""

_EMPTY = ("null-co", "null-aio")
"""Drivers that keep nothing."""

_ELSEWHERE = ("nbd", "rbd", "iscsi", "ssh", "nfs", "gluster", "http", "https", "ftp", "ftps", "nvme", "vvfat")
"""Drivers at the end of a tree, for a QEMU that does not tell its trees."""

VHOST_USER = "vhost-user"


@dataclass(frozen=True, slots=True)
class Image:
    """One image. `path` is a file's in QEMU's own view of the host, absolute where that can be told; of another what
    QEMU calls it. `devices` are the places where the guest sees it, none for what lies below another image;
    None where nobody tells. `size`, in bytes, is QEMU's word on what is no file."""

    path: str
    driver: str
    devices: tuple[str, ...] | None = None
    read_only: bool = False
    size: int | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a file or a device of this host."""
        return self.driver in FILES


@dataclass(frozen=True, slots=True)
class Images:
    """All images of a QEMU, and the files as it sees them. `complete`: what is not among them, it has not."""

    rows: tuple[Image, ...]
    view: View = field(default_factory=lambda: View(0))
    complete: bool = True

    def find(self, path: str) -> Image | None:
        """The image of that name, or of another name of the same file."""
        for row in self.rows:
            if row.path == path:
                return row
        real = self.view.real(path)
        return next((row for row in self.rows if row.is_file and self.view.real(row.path) == real), None)

    @property
    def written(self) -> bool:
        """Whether there is one that the guest may write to."""
        return any(not row.read_only and row.devices != () for row in self.rows)

    @property
    def temporary(self) -> list[str]:
        """Files without a name that the guest writes to: an overlay of -snapshot's, or a disk that was removed."""
        written = (row for row in self.rows if row.is_file and row.devices and not row.read_only)
        return [row.path for row in written if self.view.lacks(row.path)]

    def at(self, places: tuple[str, ...]) -> list[str]:
        """What the guest would see in these places."""
        return [row.path for row in self.rows if set(row.devices or ()) & set(places)]


def images(monitor: Monitor) -> Images:
    """Of the QEMU behind the monitor. Raises QemuError."""
    view = View(qemu_under(monitor.pid))
    nodes = {row["node-name"]: row for row in monitor.execute("query-named-block-nodes") if row.get("node-name")}
    try:
        rows = [*_trees(monitor, nodes, view), *_served(monitor)]
    except Misshapen as error:
        raise QemuError(f"what {monitor.place} says of its disks is not understood: {error}") from error
    return Images(_merged(rows), view)


def _merged(rows: Iterable[Image]) -> tuple[Image, ...]:
    """Each image once, however many devices have opened it."""
    found: dict[tuple[str, str], Image] = {}
    for row in rows:
        other = found.setdefault((row.path, row.driver), row)
        devices = None if row.devices is None else tuple(sorted({*row.devices, *(other.devices or ())}))
        found[row.path, row.driver] = replace(row, devices=devices, read_only=row.read_only and other.read_only)
    return tuple(found[key] for key in sorted(found))


Node = Mapping[str, Any]


def _trees(monitor: Monitor, nodes: Mapping[str, Node], view: View) -> Iterator[Image]:
    """What the devices' trees end in. Raises Misshapen, QemuError."""
    below = _children(monitor)
    if below is None:
        leaves = [node for node in nodes.values() if node["drv"] in FILES + _ELSEWHERE]
        yield from (_image(node, view, None) for node in leaves)
        return
    found: dict[str, set[str]] = {}
    for device in monitor.execute("query-block"):
        top = device.get("inserted", {}).get("node-name")
        if top in nodes:
            seen = [place(monitor, device["qdev"])] if device.get("qdev") else []
            for leaf, is_top in _leaves(top, nodes, below, view):
                found.setdefault(leaf, set()).update(seen if is_top else [])
    for name, places in found.items():
        if nodes[name]["drv"] not in _EMPTY:
            yield _image(nodes[name], view, tuple(sorted(places)))


def _children(monitor: Monitor) -> dict[str, list[tuple[str, str]]] | None:
    """For each node, the names of the edges that leave it and of the nodes that they lead to; None before QEMU 4.0."""
    graph = ask(monitor, "x-debug-query-block-graph")
    if graph is None:
        return None
    names = {node["id"]: node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
    below: dict[str, list[tuple[str, str]]] = {}
    for edge in graph["edges"]:
        if edge["parent"] in names and edge["child"] in names and edge["name"] != "target":  # which is a job's
            below.setdefault(names[edge["parent"]], []).append((edge["name"], names[edge["child"]]))
    return below


def _leaves(
    name: str, nodes: Mapping[str, Node], below: Mapping[str, list[tuple[str, str]]], view: View
) -> Iterator[tuple[str, bool]]:
    """The leaves of the tree under a node, and whether they are at its top: not behind a backing file's edge.

    An overlay that has no name any more is -snapshot's: nobody has written to it who could have named it, and what is
    below it counts as the top.
    """
    edges = [edge for edge in below.get(name, []) if edge[1] in nodes]
    if not edges:
        yield name, True
        return
    own = [leaf for edge, child in edges if edge != "backing" for leaf in _leaves(child, nodes, below, view)]
    yield from own
    for edge, child in edges:
        if edge == "backing":
            through = all(_is_unlinked(nodes[leaf], view) for leaf, _ in own)
            yield from ((leaf, is_top and through) for leaf, is_top in _leaves(child, nodes, below, view))


def _is_unlinked(node: Node, view: View) -> bool:
    full = view.full(node["file"]) if node["drv"] in FILES else None
    return full is not None and view.lacks(full)


def _image(node: Node, view: View, places: tuple[str, ...] | None) -> Image:
    """Raises Misshapen."""
    read_only = bool(node.get("ro"))
    if node["drv"] in FILES:
        path = file_name(node["file"])
        return Image(view.full(path) or path, node["drv"], places, read_only)
    size = node.get("image", {}).get("virtual-size")
    return Image(_plain(node["file"])[:4096], node["drv"], places, read_only, size)


def _plain(name: str) -> str:
    """QEMU's json: names in one order of their words."""
    if not name.startswith("json:"):
        return name
    try:
        return "json:" + json.dumps(json.loads(name[5:]), sort_keys=True)
    except (ValueError, RecursionError):
        return name


def _served(monitor: Monitor) -> Iterator[Image]:
    """Disks that another process serves through vhost-user: no node of QEMU's, but a device with a socket."""
    for folder in ("/machine/peripheral", "/machine/peripheral-anon"):
        for row in ask(monitor, "qom-list", path=folder) or []:
            if row["type"].startswith(("child<vhost-user-blk", "child<vhost-user-scsi")):
                path = f"{folder}/{row['name']}"
                yield Image(_socket(monitor, path)[:4096], VHOST_USER, (place(monitor, path),))


def _socket(monitor: Monitor, device: str) -> str:
    """Where it is served, as `unix:/run/disk.sock`. query-chardev tells no path of a socket that QEMU connected to."""
    label = str(ask(monitor, "qom-get", path=device, property="chardev"))
    address = ask(monitor, "qom-get", path=f"/chardevs/{label}", property="addr")
    if not isinstance(address, dict):
        return label
    words = address.get("data", address)
    where = words.get("path") if isinstance(words, dict) else None
    return f"unix:{where}" if isinstance(where, str) else label
