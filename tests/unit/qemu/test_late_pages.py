"""Whether a QEMU can run a guest before its memory is there: what its monitor says, and what the host allows."""

from __future__ import annotations

from pathlib import Path

import pytest

from statepipe.qemu.late_pages import NoLatePages, demand_late_pages, page_sizes
from statepipe.qemu.monitor import Monitor
from tests.qmpserver import QmpServer, qmp_server

BLOCKS_72 = (
    "              Block Name    PSize              Offset               Used              Total\r\n"
    "                  pc.ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000\r\n"
    "    /rom@etc/acpi/tables    4 KiB  0x0000000008060000 0x0000000000020000 0x0000000000200000\r\n"
    "           a huge memory    2 MiB  0x0000000008260000 0x0000000040000000 0x0000000040000000\r\n"
)
BLOCKS_10 = (
    "              Block Name    PSize              Offset               Used              Total"
    "                HVA  RO\r\n"
    "                  pc.ram    4 KiB  0x0000000000000000 0x0000000004000000 0x0000000004000000"
    " 0x00007f6d2fe00000  rw\r\n"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BLOCKS_72, {"pc.ram": 4096, "/rom@etc/acpi/tables": 4096, "a huge memory": 2 << 20}),
        (BLOCKS_10, {"pc.ram": 4096}),
        ("", {}),
    ],
)
def test_page_sizes_are_read_from_what_both_series_print(tmp_path: Path, text: str, expected: dict[str, int]) -> None:
    with qmp_server(tmp_path) as server:
        server.answers["human-monitor-command"] = text
        assert asked(server, page_sizes) == expected


@pytest.mark.parametrize(
    ("kind", "why"), [("vfio-pci", "a device of the host"), ("vhost-user-fs-pci", "another process or the hardware")]
)
def test_a_device_of_the_host_or_another_process_is_refused(tmp_path: Path, kind: str, why: str) -> None:
    with qmp_server(tmp_path) as server:
        server.answers["qom-list"] = [{"name": "nic", "type": f"child<{kind}>"}]
        with pytest.raises(NoLatePages, match=rf"{why}.* \({kind}\)") as refused:
            asked(server, demand_late_pages)
        assert refused.value.exit_code == 6


def test_a_network_of_another_process_is_refused(tmp_path: Path) -> None:
    with qmp_server(tmp_path) as server:
        server.answers["human-monitor-command"] = "n: index=0,type=vhost-user,vhost-user0 to v\r\n"
        with pytest.raises(NoLatePages, match=r"a network that another process .*\(vhost-user\)"):
            asked(server, demand_late_pages)


@pytest.mark.parametrize(("path", "is_refused"), [("/proc/self/status", True), ("/dev/shm", False)])
def test_memory_may_come_late_in_tmpfs_alone(tmp_path: Path, path: str, is_refused: bool) -> None:
    with qmp_server(tmp_path) as server:
        rows = [{"name": "pc.ram", "type": "child<memory-backend-file>"}]
        server.takes["qom-list"] = lambda arguments: rows if arguments["path"] == "/objects" else []
        server.answers |= {"qom-get mem-path": path, "human-monitor-command": ""}
        if not is_refused:
            asked(server, demand_late_pages)
            return
        with pytest.raises(NoLatePages, match=r"the guest's memory 'pc\.ram' is a file on proc: "):
            asked(server, demand_late_pages)


def asked(server: QmpServer, what: object) -> object:
    monitor = Monitor(server.path)
    try:
        return what(monitor)  # type: ignore[operator]
    finally:
        monitor.close()
