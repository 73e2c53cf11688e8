"""The images that a QEMU has open, and where its guest sees each, as QEMU itself reports them.

A device has a tree of block nodes, whose leaves are files, block devices, or images behind a protocol. The guest writes
to those at the top; others are below them, as backing files. Nodes without a device, such as the target of a backup, do
not belong to the guest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress

from statepipe.errors import QemuError
from statepipe.qemu.answers import file_name
from statepipe.qemu.devices import ask, place
from statepipe.qemu.process import qemu_under
from statepipe.qemu.view import View
from statepipe.shapes import Misshapen
from statepipe.typed import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # asyncio takes 60 ms, which a filter need not pay
    from statepipe.qemu.monitor import Monitor

FILES = ("file", "host_device", "host_cdrom")
"""Drivers of images with a name on the host."""

_EMPTY = ("null-co", "null-aio")
"""Drivers that store nothing."""

_ELSEWHERE = ("nbd", "rbd", "iscsi", "ssh", "nfs", "gluster", "http", "https", "ftp", "ftps", "nvme", "vvfat")
"""Other drivers of leaves, for a QEMU that does not report its trees."""

VHOST_USER = "vhost-user"


class Image(NamedTuple):
    """One image.

    `path` of a file is its name in QEMU's view of the host, absolute if possible; of another image, QEMU's name for it.
    `devices` are the places where the guest sees it: none for an image below another one, None if unknown. `size`, in
    bytes, is reported by QEMU for images that are not files.
    """

    path: str
    driver: str
    devices: tuple[str, ...] | None = None
    read_only: bool = False
    size: int | None = None

    @property
    def is_file(self) -> bool:
        """Whether it is a file or a block device of this host."""
        return self.driver in FILES


class Images(NamedTuple):
    """All images of a QEMU, and its view of the host's files. `complete`: it has no others."""

    rows: tuple[Image, ...]
    view: View = View(0)
    complete: bool = True

    def find(self, path: str) -> Image | None:
        """Return the image with that name, or with another name of the same file."""
        for row in self.rows:
            if row.path == path:
                return row
        real, files = self.view.real(path), [row for row in self.rows if row.is_file]
        return next((row for row in files if self.view.real(row.path) == real), None) or next(
            (row for row in files if self.view.is_same(row.path, path)), None
        )

    @property
    def written(self) -> bool:
        """Whether the guest may write to any."""
        return any(not row.read_only and row.devices != () for row in self.rows)

    @property
    def temporary(self) -> list[str]:
        """Files without a name that the guest writes to: the overlay of -snapshot, or a disk that was removed."""
        written = (row for row in self.rows if row.is_file and row.devices and not row.read_only)
        return [row.path for row in written if self.view.lacks(row.path)]

    def through(self, overlays: Mapping[str, str]) -> Images:
        """Return the same without these overlays, path to base: the guest sees each base in its overlay's place."""
        over = {base: row for path, base in overlays.items() if (row := self.find(path)) is not None}
        bases = {row: over[base] for base in over if (row := self.find(base)) is not None}
        rows = tuple(
            row._replace(devices=bases[row].devices, read_only=bases[row].read_only) if row in bases else row
            for row in self.rows
            if row not in over.values()
        )
        return self._replace(rows=rows)

    def at(self, places: tuple[str, ...]) -> list[str]:
        """Return the paths of the images that the guest sees in these places."""
        return [row.path for row in self.rows if set(row.devices or ()) & set(places)]


Node = Mapping[str, Any]
Edges = Mapping[str, list[tuple[str, str]]]
"""For each node, the names of the edges that leave it and of the nodes that they lead to."""


def images(monitor: Monitor) -> Images:
    """Return the images of the QEMU behind the monitor. Raises QemuError."""
    view = View(qemu_under(monitor.pid))
    nodes = {row["node-name"]: row for row in monitor.execute("query-named-block-nodes") if row.get("node-name")}
    found: dict[tuple[str, str], Image] = {}
    try:
        for row in (*_trees(monitor, nodes, view), *_served(monitor)):  # several devices can use one image
            other = found.setdefault((row.path, row.driver), row)
            devices = None if row.devices is None else tuple(sorted({*row.devices, *(other.devices or ())}))
            found[row.path, row.driver] = row._replace(devices=devices, read_only=row.read_only and other.read_only)
    except Misshapen as error:
        raise QemuError(f"unexpected disks reported by {monitor.place}: {error}") from error
    return Images(tuple(found[key] for key in sorted(found)), view)


def _trees(monitor: Monitor, nodes: Mapping[str, Node], view: View) -> Iterator[Image]:
    """Yield the leaves of the devices' trees. Raises Misshapen, QemuError."""
    graph = ask(monitor, "x-debug-query-block-graph")
    if graph is None:  # QEMU before 4.0
        leaves = [node for node in nodes.values() if node["drv"] in FILES + _ELSEWHERE]
        yield from (_image(node, view, None) for node in leaves)
        return
    names = {node["id"]: node["name"] for node in graph["nodes"] if node["type"] == "block-driver"}
    below: dict[str, list[tuple[str, str]]] = {}
    for edge in graph["edges"]:
        if edge["parent"] in names and edge["child"] in names and edge["name"] != "target":  # a job's
            below.setdefault(names[edge["parent"]], []).append((edge["name"], names[edge["child"]]))
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


def _leaves(name: str, nodes: Mapping[str, Node], below: Edges, view: View) -> Iterator[tuple[str, bool]]:
    """Yield the leaves of the tree under a node, and whether they are at its top: not behind a backing file's edge.

    An overlay without a name belongs to -snapshot: no command line can name it, so the image below it counts as the
    top.
    """
    edges = [edge for edge in below.get(name, []) if edge[1] in nodes]
    if not edges:
        yield name, True
        return
    own = [leaf for edge, child in edges if edge != "backing" for leaf in _leaves(child, nodes, below, view)]
    yield from own
    for edge, child in edges:
        if edge == "backing":
            files = [view.full(nodes[leaf]["file"]) if nodes[leaf]["drv"] in FILES else None for leaf, _ in own]
            through = all(file is not None and view.lacks(file) for file in files)
            yield from ((leaf, is_top and through) for leaf, is_top in _leaves(child, nodes, below, view))


def _image(node: Node, view: View, places: tuple[str, ...] | None) -> Image:
    """Raises Misshapen."""
    name, read_only = node["file"], bool(node.get("ro"))
    if node["drv"] in FILES:
        path = file_name(name)
        return Image(view.full(path) or path, node["drv"], places, read_only)
    if name.startswith("json:"):
        with suppress(ValueError, RecursionError):  # in one order of its words
            name = "json:" + json.dumps(json.loads(name[5:]), sort_keys=True)
    return Image(name[:4096], node["drv"], places, read_only, node.get("image", {}).get("virtual-size"))


def _served(monitor: Monitor) -> Iterator[Image]:
    """Yield disks that another process serves through vhost-user. QEMU has no block node for them, only a device with
    a socket, such as `unix:/run/disk.sock`; query-chardev does not report the path of a socket that QEMU connected to.
    """
    for folder in ("/machine/peripheral", "/machine/peripheral-anon"):
        for row in ask(monitor, "qom-list", path=folder) or []:
            if not row["type"].startswith(("child<vhost-user-blk", "child<vhost-user-scsi")):
                continue
            path = f"{folder}/{row['name']}"
            label = str(ask(monitor, "qom-get", path=path, property="chardev"))
            address = ask(monitor, "qom-get", path=f"/chardevs/{label}", property="addr")
            words = address.get("data", address) if isinstance(address, dict) else None
            where = words.get("path") if isinstance(words, dict) else None
            name = f"unix:{where}" if isinstance(where, str) else label
            yield Image(name[:4096], VHOST_USER, (place(monitor, path),))
