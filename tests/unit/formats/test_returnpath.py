"""The return path: what the destination of a migration tells its source."""

from __future__ import annotations

import pytest

from statepipe.formats.qemu.returnpath import pong, shut


def test_shut_and_pong_as_qemu_reads_them() -> None:
    assert shut(1).hex() == "0001000400000001"
    assert pong(0xABCDEF).hex() == "0002000400abcdef"


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_value_beyond_32_bits_is_a_mistake_of_ours(value: int) -> None:
    with pytest.raises(ValueError, match="32 bits"):
        shut(value)
