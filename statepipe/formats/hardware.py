"""The shape of the description of a guest's hardware, in a state file and between hosts."""

from __future__ import annotations

from statepipe.shapes import fields, many, maybe, table, text, whole

_NAME = text(64)
_NUMBERS = table(whole(most=0xFFFFFFFF), most=128, names=_NAME)

CPU = fields({"type": text(256), "features": _NUMBERS, "missing": _NUMBERS}, optional={"tsc": maybe(whole())})
CPUS = many(text(128), most=4096)
DEVICES = many(text(600), most=4096)

HARDWARE = fields({}, {"accelerator": _NAME, "cpu": CPU, "cpus": CPUS, "devices": DEVICES})
"""qemu/guest.py collects it from QEMU."""
