"""QEMU's own list of its options against what statepipe takes for one."""

from __future__ import annotations

import re
import subprocess

from statepipe.qemu.commandline import parted

WITH_VALUES = {"dtb", "M"}
"""Written in the list as those without a value."""


def test_every_option_without_a_value_is_known(qemu: str) -> None:
    """As its own help writes them: those with one have a space and its name behind theirs."""
    said = subprocess.run([qemu, "-help"], capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^--?([a-zA-Z][\w-]*)(?: or -(\w+))?(?: {2,}|\n)", said, re.MULTILINE)
    names = {name for line in lines for name in line if name} - WITH_VALUES
    assert len(names) > 20
    for name in names:
        assert [words for _, words in parted(["qemu", f"-{name}", "next"])] == [[f"-{name}"], ["next"]], name
