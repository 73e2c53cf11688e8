"""Run states of a guest (QEMU's qapi/run-state.json): which can be moved, and which continue by themselves.

A guest that was stopped by an I/O error, a watchdog or a panic, or that was never started, still has its whole state;
and a host whose storage is full needs to be emptied.
"""

from __future__ import annotations

RUNNING, SUSPENDED, PAUSED = "running", "suspended", "paused"

LIVE = (RUNNING, SUSPENDED)
"""States that `cont` restores. A suspended guest (ACPI S3) stays suspended until something wakes it."""

RAN_AT_SAVE = (*LIVE, None)
"""States in a stream of a guest that ran. A machine type older than 2.4 does not save its run state; QEMU itself then
assumes that it was running."""

UNRUN = ("prelaunch", "inmigrate", PAUSED, "finish-migrate")
"""States of a guest that arrived by a stream and was never told to run. In any other state than the one it arrived in,
it has run and may have written to its disks: only a running guest has an I/O error, a panic or a shutdown."""

SENT = "postmigrate"
"""The guest was sent: a file or another QEMU has it too."""

STANDING = (PAUSED, "prelaunch", "io-error", "shutdown", "watchdog", "guest-panicked", "internal-error")

MOVABLE = (*LIVE, *STANDING)
"""States in which QEMU 7.2 to 11.1 lets a guest migrate; the other QEMU is then in the same state."""

FINAL = ("completed", "failed", "cancelled")
"""The statuses of a migration that has ended. Any other, also an unknown one of a later QEMU, means that it goes on."""
