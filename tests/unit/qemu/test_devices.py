"""Where the guest sees a device, as QEMU 7.2 and 11 tell it."""

from __future__ import annotations

from contextlib import closing

import pytest

from statepipe.qemu.devices import place
from statepipe.qemu.monitor import Monitor
from tests.qmpserver import QmpServer


@pytest.mark.parametrize(("number", "words"), [(0x29, "pci.0 05.1"), (0x10, "pci.0 02.0"), (0xFF, "pci.0 1f.7")])
def test_a_pci_device_is_at_its_slot_and_function(server: QmpServer, number: int, words: str) -> None:
    """QEMU 11 has no `legacy-addr` any more, whose words are in older states."""
    server.answers |= {"qom-get parent_bus": "/machine/i440fx/pci.0", "qom-get addr": number}
    server.answers["qom-get legacy-addr"] = server.refused
    with closing(Monitor(server.path)) as monitor:
        assert place(monitor, "/machine/peripheral/r") == words


def test_another_device_is_at_the_address_of_its_own_bus(server: QmpServer) -> None:
    server.answers |= {"qom-get parent_bus": "/machine/peripheral/s/virtio-scsi.0/s.0", "qom-get addr": server.refused}
    server.answers |= {"qom-get unit": server.refused}
    server.answers |= {"qom-get scsi-id": 3, "qom-get channel": 0, "qom-get lun": 7}
    with closing(Monitor(server.path)) as monitor:
        assert place(monitor, "/machine/peripheral/d") == "s.0 3 0 7"
