"""The run states of a guest, as QEMU's qapi/run-state.json has them: which can be moved, and which go on by themselves.

A guest that an I/O error, a watchdog or a panic has stopped, or that was never started, has its whole state all the
same; and a host whose storage is full is one to be emptied.
"""

from __future__ import annotations

RUNNING, SUSPENDED = "running", "suspended"

LIVE = (RUNNING, SUSPENDED)
"""Of these `cont` makes what they were: a guest that is suspended (ACPI S3) waits to be woken, and stays suspended."""

UNRUN = ("prelaunch", "inmigrate", "paused", "finish-migrate")
"""Of these a guest is that came by a stream and was never told to run. In any other state that it did not come in, it
has run, and may have written to its disks: an I/O error, a panic or a shutdown stops only a guest that runs."""

SENT = "postmigrate"
"""All of it has left: a file or another QEMU has it too."""

STANDING = ("paused", "prelaunch", "io-error", "shutdown", "watchdog", "guest-panicked", "internal-error")

MOVABLE = (*LIVE, *STANDING)
"""What QEMU 7.2 to 10.0 lets go to another QEMU, which is then in the same state."""
