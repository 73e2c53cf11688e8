"""QEMU's configuration files, read as QEMU reads them: each line was tried with -readconfig of QEMU 7.2."""

from __future__ import annotations

import pytest

from statepipe.qemu.configfile import options

FILES = {
    '[drive "x"]\n file = "/d"\n': [["-drive", "id=x,file=/d"]],
    '[ drive  "x" ] junk\n\tfile="a"\n\tfile\t=\t"/d" # hi': [["-drive", 'id=x,file="a"=,file=/d']],
    '[drive "x\n file = "/d\nif = "none"': [["-drive", "id=x\n,file=/d\n,if=none"]],
    '[drive"x"]\n file = ""\n': [['-drive"x"', "file="]],
    '[machine]\n usb\n#[drive "x"]\n # a = "b"\n': [["-machine", "usb=,#="]],
    '[machine]\n [drive "x"]\n': [["-machine", "[drive="]],
    '[drive "x"]\r\n file = "/d"\r\n': [["-drive", "id=x,file=/d"]],
    '[drive "x"]\n file = "/a\x0cb\u2028c"\n': [["-drive", "id=x,file=/a\x0cb\u2028c"]],
    '[drive "x"]\n file = "/d\0"': [["-drive", "id=x,file=/d"]],
    f'[drive "x"]\n file = "{"a" * 1014}[chardev "c"]\n path = "/l"': [
        ["-drive", f"id=x,file={'a' * 1014}"],
        ["-chardev", "id=c,path=/l"],
    ],
    'file = "before any"\n[chardev "c"]\n backend = "file"\n path = "/a,b"\n': [["-chardev", "file,id=c,path=/a,,b"]],
}


@pytest.mark.parametrize("text", FILES)
def test_what_a_file_says_is_what_qemu_takes(text: str) -> None:
    assert list(options(text)) == FILES[text]
