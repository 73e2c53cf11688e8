"""The guest of our own: a boot sector that proves that its memory and its time went on.

At boot it fills FILL MB of RAM with pseudo-random words. Then, once a tick (50 ms, or as long as the work takes):

1. it hashes every word of the filled region;
2. it checks that each page of a second region of DIRTY MB holds the number of the tick before, mixes any difference
   into the hash, and writes the new number into the page, so that pages keep getting dirty;
3. it prints `TICK <n> SUM <hash>` on COM1, both as 8 hex digits.

So n counts from 1 without a gap and SUM never changes, over any number of moves, unless RAM was damaged or RAM and CPU
come from different moments: n lives in a register, the pages that must agree with it in RAM. One changed word always
changes SUM, since each step of the hash is one-to-one in the word and in the hash before it.

The source below is a listing as an assembler prints it, the bytes first, so that building needs no assembler. The
guest never writes to its disk. It rests between its ticks, in hlt, and the one interrupt it knows is the timer's, which
wakes it: so it takes no core that others need. Measured with QEMU 7.2 and TCG: the first tick 0.3 s after the start; a
saved state of 57 MiB, 24 after zstd -1; beside other tests, about 30 of a tick's 50 ms spent working with the defaults
(24 + 16 MB in 128 MB), and about 10 with FILL 8.
DIRTY at 20 ticks a second is also a rate: 16 MB are 320 MB/s, and a live migration of 64 MB never converges by itself.

    python tests/guest.py IMAGE
    qemu-system-x86_64 -accel tcg -m 128 -display none -nodefaults -serial stdio -drive file=IMAGE,format=raw,if=ide
"""

from __future__ import annotations

import os
import re
import struct
import sys
from pathlib import Path

ORIGIN = 0x7C00  # where a BIOS puts the boot sector
CODE_LIMIT = 502  # the two parameters and the signature follow
SIGNATURE = b"\x55\xaa"
IMAGE_SIZE = 1 << 20
LARGEST_MB = 3000  # fill and dirty together: i440fx keeps 3 GiB below its PCI hole, and the regions start at 2 MiB

# Each line: bytes in hex and references, then the instruction. `name:rel8` and `name:rel32` are a jump's distance to a
# label, `name:abs16` and `name:abs32` its address. Registers of the main loop: ebp = tick number, ebx = hash.
LISTING = """
start:                                ; 16-bit real mode
    FA                                ; cli
    31 C0                             ; xor ax, ax
    8E D8                             ; mov ds, ax
    E4 92                             ; in al, 0x92             the A20 line on, in case the BIOS left it off
    0C 02                             ; or al, 2
    24 FE                             ; and al, 0xFE            bit 0 would reset the machine
    E6 92                             ; out 0x92, al
    0F 01 16 gdt_pointer:abs16        ; lgdt [gdt_pointer]
    0F 20 C0                          ; mov eax, cr0
    0C 01                             ; or al, 1
    0F 22 C0                          ; mov cr0, eax
    EA protected:abs16 08 00          ; jmp 0x08:protected
protected:                            ; 32-bit, flat, no interrupt but where hlt waits for one
    66 B8 10 00                       ; mov ax, 0x10
    8E D8                             ; mov ds, ax
    8E C0                             ; mov es, ax
    8E D0                             ; mov ss, ax
    BC 00 7C 00 00                    ; mov esp, 0x7C00
    FC                                ; cld
    C7 05 40 60 00 00 timer:abs16 08 00    ; mov dword [0x6040], timer + (0x08 << 16)     the BIOS has IRQ 0 as 8
    C7 05 44 60 00 00 00 8E 00 00     ; mov dword [0x6044], 0x8E00                    an interrupt gate
    0F 01 1D idt_pointer:abs32        ; lidt [idt_pointer]
    B0 FE                             ; mov al, 0xFE            the timer's interrupt alone
    E6 21                             ; out 0x21, al

    BF 00 00 20 00                    ; mov edi, 0x200000
    8B 0D fill_mb:abs32               ; mov ecx, [fill_mb]
    C1 E1 12                          ; shl ecx, 18             MB to words
    B8 B9 79 37 9E                    ; mov eax, 0x9E3779B9     the seed: any number but 0
    E3 filled:rel8                    ; jecxz filled
fill_word:                            ; Marsaglia's xorshift32 (13, 17, 5)
    89 C2                             ; mov edx, eax
    C1 E2 0D                          ; shl edx, 13
    31 D0                             ; xor eax, edx
    89 C2                             ; mov edx, eax
    C1 EA 11                          ; shr edx, 17
    31 D0                             ; xor eax, edx
    89 C2                             ; mov edx, eax
    C1 E2 05                          ; shl edx, 5
    31 D0                             ; xor eax, edx
    AB                                ; stosd
    E2 fill_word:rel8                 ; loop fill_word
filled:
    89 FE                             ; mov esi, edi            the dirty region follows the filled one
    31 ED                             ; xor ebp, ebp
    E8 dirty_pages:rel32              ; call dirty_pages        the 0 that tick 1 expects, whatever a reset left there

tick:
    45                                ; inc ebp
    B0 30                             ; mov al, 0x30            channel 0, both bytes, mode 0: one interrupt at 0
    E6 43                             ; out 0x43, al
    B0 0B                             ; mov al, 0x0B            59659 of 1193182 Hz = 50 ms
    E6 40                             ; out 0x40, al
    B0 E9                             ; mov al, 0xE9
    E6 40                             ; out 0x40, al

    BE 00 00 20 00                    ; mov esi, 0x200000
    8B 0D fill_mb:abs32               ; mov ecx, [fill_mb]
    C1 E1 10                          ; shl ecx, 16             MB to four words
    BB C5 9D 1C 81                    ; mov ebx, 0x811C9DC5
    BF 93 01 00 01                    ; mov edi, 0x01000193
    E3 summed:rel8                    ; jecxz summed
sum_words:                            ; four at a time: the loop itself is most of what one would cost
    C1 C3 05                          ; rol ebx, 5              high bits reach the low ones; TCG is slow at it: so once
    33 1E                             ; xor ebx, [esi]
    0F AF DF                          ; imul ebx, edi
    33 5E 04                          ; xor ebx, [esi + 4]
    0F AF DF                          ; imul ebx, edi
    33 5E 08                          ; xor ebx, [esi + 8]
    0F AF DF                          ; imul ebx, edi
    33 5E 0C                          ; xor ebx, [esi + 12]
    0F AF DF                          ; imul ebx, edi
    83 C6 10                          ; add esi, 16
    E2 sum_words:rel8                 ; loop sum_words
summed:
    E8 dirty_pages:rel32              ; call dirty_pages

    FB                                ; sti                     takes effect after hlt has begun: no tick is missed
    F4                                ; hlt
    FA                                ; cli

    BE tick_text:abs32                ; mov esi, tick_text
    E8 put_text:rel32                 ; call put_text
    89 EF                             ; mov edi, ebp
    E8 put_hex:rel32                  ; call put_hex
    BE sum_text:abs32                 ; mov esi, sum_text
    E8 put_text:rel32                 ; call put_text
    89 DF                             ; mov edi, ebx
    E8 put_hex:rel32                  ; call put_hex
    BE end_text:abs32                 ; mov esi, end_text
    E8 put_text:rel32                 ; call put_text
    E9 tick:rel32                     ; jmp tick

dirty_pages:                          ; from esi: mixes (page - (ebp - 1)), which is 0, into ebx; leaves ebp in the page
    8B 0D dirty_mb:abs32              ; mov ecx, [dirty_mb]
    C1 E1 08                          ; shl ecx, 8              MB to pages
    E3 dirtied:rel8                   ; jecxz dirtied
dirty_page:
    8B 06                             ; mov eax, [esi]
    29 E8                             ; sub eax, ebp
    40                                ; inc eax
    C1 C3 05                          ; rol ebx, 5
    31 C3                             ; xor ebx, eax
    69 DB 93 01 00 01                 ; imul ebx, ebx, 0x01000193
    89 2E                             ; mov [esi], ebp
    81 C6 00 10 00 00                 ; add esi, 4096
    E2 dirty_page:rel8                ; loop dirty_page
dirtied:
    C3                                ; ret

put_hex:                              ; edi as 8 hex digits
    B9 08 00 00 00                    ; mov ecx, 8
put_digit:
    C1 C7 04                          ; rol edi, 4
    89 F8                             ; mov eax, edi
    24 0F                             ; and al, 0x0F
    3C 0A                             ; cmp al, 10              the classic of 5 bytes: 0-15 to '0'-'9', 'A'-'F'
    1C 69                             ; sbb al, 0x69
    2F                                ; das
    E8 put_char:rel32                 ; call put_char
    E2 put_digit:rel8                 ; loop put_digit
    C3                                ; ret

put_text:                             ; the bytes at esi, up to a 0
    AC                                ; lodsb
    84 C0                             ; test al, al
    74 text_end:rel8                  ; jz text_end
    E8 put_char:rel32                 ; call put_char
    EB put_text:rel8                  ; jmp put_text
text_end:
    C3                                ; ret

put_char:                             ; al to COM1, once it has room; destroys eax, edx
    88 C4                             ; mov ah, al
    66 BA FD 03                       ; mov dx, 0x3FD
put_wait:
    EC                                ; in al, dx
    A8 20                             ; test al, 0x20
    74 put_wait:rel8                  ; jz put_wait
    88 E0                             ; mov al, ah
    B2 F8                             ; mov dl, 0xF8
    EE                                ; out dx, al
    C3                                ; ret

timer:                                ; al is free where it may come
    B0 20                             ; mov al, 0x20            it has been heard
    E6 20                             ; out 0x20, al
    CF                                ; iret

tick_text:
    54 49 43 4B 20 00                 ; "TICK "
sum_text:
    20 53 55 4D 20 00                 ; " SUM "
end_text:
    0D 0A 00                          ; CR LF
gdt:
    00 00 00 00 00 00 00 00           ; the null descriptor
    FF FF 00 00 00 9A CF 00           ; 0x08: code, base 0, 4 GiB, 32-bit
    FF FF 00 00 00 92 CF 00           ; 0x10: data, base 0, 4 GiB
gdt_pointer:
    17 00 gdt:abs32                   ; limit, base
idt_pointer:
    47 00 00 60 00 00                 ; limit, base: up to interrupt 8
"""

_REFERENCE_SIZES = {"rel8": 1, "rel32": 4, "abs16": 2, "abs32": 4}
_PARAMETERS = {"fill_mb": ORIGIN + CODE_LIMIT, "dirty_mb": ORIGIN + CODE_LIMIT + 4}
_TICK = re.compile(r"TICK ([0-9A-F]{8}) SUM ([0-9A-F]{8})")


def boot_sector(fill_mb: int = 24, dirty_mb: int = 16) -> bytes:
    """Give the 512 bytes of the guest; it needs 2 MB + fill_mb + dirty_mb of RAM. ValueError for sizes out of range."""
    if min(fill_mb, dirty_mb) < 0 or fill_mb + dirty_mb > LARGEST_MB:
        raise ValueError(f"fill {fill_mb} MB + dirty {dirty_mb} MB: each at least 0, together at most {LARGEST_MB}")
    return assemble(LISTING).ljust(CODE_LIMIT, b"\0") + struct.pack("<II", fill_mb, dirty_mb) + SIGNATURE


def write_image(path: str | os.PathLike[str], fill_mb: int = 24, dirty_mb: int = 16) -> None:
    """Write a raw disk image of 1 MiB (a size that an IDE disk can have) with the boot sector in it."""
    Path(path).write_bytes(boot_sector(fill_mb, dirty_mb).ljust(IMAGE_SIZE, b"\0"))


def parse_ticks(serial_text: str) -> list[tuple[int, int]]:
    """Give (n, SUM) of each whole tick line. A move can fall inside a line: join both sides' text to miss none."""
    return [(int(n, 16), int(total, 16)) for n, total in _TICK.findall(serial_text)]


def assemble(listing: str) -> bytes:
    """Turn a listing into machine code for ORIGIN. ValueError when it is too long or a jump too far."""
    lines = [line.partition(";")[0].split() for line in listing.splitlines()]
    labels = _addresses(lines)
    code = bytearray()
    for token in _codes(lines):
        code += _encode(token, ORIGIN + len(code), labels)
    if len(code) > CODE_LIMIT:
        raise ValueError(f"the code takes {len(code)} bytes, there is room for {CODE_LIMIT}")
    return bytes(code)


def _addresses(lines: list[list[str]]) -> dict[str, int]:
    labels, address = dict(_PARAMETERS), ORIGIN
    for tokens in lines:
        if tokens and tokens[0].endswith(":"):
            labels[tokens[0][:-1]] = address
        address += sum(_size(token) for token in _codes([tokens]))
    return labels


def _codes(lines: list[list[str]]) -> list[str]:
    return [token for tokens in lines for token in tokens if not token.endswith(":")]


def _size(token: str) -> int:
    return _REFERENCE_SIZES[token.partition(":")[2]] if ":" in token else 1


def _encode(token: str, address: int, labels: dict[str, int]) -> bytes:
    name, colon, kind = token.partition(":")
    if not colon:
        return bytes.fromhex(token)
    size = _REFERENCE_SIZES[kind]
    relative = kind.startswith("rel")
    value = labels[name] - (address + size if relative else 0)
    try:
        return value.to_bytes(size, "little", signed=relative)
    except OverflowError:
        raise ValueError(f"{token}: {value} does not fit into {size} byte(s)") from None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: guest.py IMAGE")
    write_image(sys.argv[1])
