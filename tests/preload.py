"""System calls that fail, are interrupted, short or slow where a test says so: a library before libc in a program.

Only what a program's sink and source are is touched: a regular file open for writing, standard input, FIFOs, sockets.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdarg.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <time.h>
#include <unistd.h>

static atomic_int calls;

/* FAULT is "NAME ERRNO FIRST LAST": those calls of that name fail. Counted from 1 on. */
static int fails(const char *name)
{
    char which[32];
    int error, first, last;
    const char *fault = getenv("FAULT");
    if (!fault || sscanf(fault, "%31s %d %d %d", which, &error, &first, &last) != 4 || strcmp(which, name))
        return 0;
    int call = atomic_fetch_add(&calls, 1) + 1;
    if (call < first || call > last)
        return 0;
    errno = error;
    return 1;
}

/* INTERRUPT=1: every other call of all these is interrupted. */
static int interrupted(void)
{
    static atomic_int count;
    if (!getenv("INTERRUPT") || atomic_fetch_add(&count, 1) % 2)
        return 0;
    errno = EINTR;
    return 1;
}

/* SHORT=1: much less than was asked for, and never the same. */
static size_t less(size_t n) { return getenv("SHORT") && n > 8192 ? 4000 + n * 7 % 4099 : n; }

static int is_sink(int fd)
{
    struct stat it;
    return !fstat(fd, &it) && S_ISREG(it.st_mode) && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
}

static int is_folder(int fd)
{
    struct stat it;
    return !fstat(fd, &it) && S_ISDIR(it.st_mode);
}

/* One with a name, in which another program writes; what pipe(2) makes is on a file system of its own. */
static int is_fifo(int fd)
{
    struct stat it;
    struct statfs on;
    return !fstat(fd, &it) && S_ISFIFO(it.st_mode) && !fstatfs(fd, &on) && on.f_type != 0x50495045;
}

static void wait_for_disk(void)
{
    const char *delay = getenv("DELAY_MS");
    if (delay) nanosleep(&(struct timespec){ 0, atol(delay) * 1000000 }, NULL);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t read(int fd, void *to, size_t n)
{
    if (interrupted() || (fd == 0 && fails("read")) || (is_fifo(fd) && fails("read-fifo"))) return -1;
    return NEXT(read)(fd, to, less(n));
}

ssize_t write(int fd, const void *from, size_t n)
{
    if (interrupted()) return -1;
    if (is_sink(fd)) {
        wait_for_disk();
        if (fails("write")) return -1;
    }
    return NEXT(write)(fd, from, less(n));
}

ssize_t send(int fd, const void *from, size_t n, int flags)
{
    if (interrupted() || fails("send")) return -1;
    return NEXT(send)(fd, from, less(n), flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (interrupted() || fails("send")) return -1;
    return NEXT(sendmsg)(fd, message, flags);
}

ssize_t recv(int fd, void *to, size_t n, int flags)
{
    return interrupted() ? -1 : NEXT(recv)(fd, to, less(n), flags);
}

int fsync(int fd)
{
    if (interrupted() || fails(is_folder(fd) ? "fsync-folder" : "fsync")) return -1;
    return NEXT(fsync)(fd);
}

int close(int fd)
{
    int failed = is_sink(fd) && fails("close");
    int done = NEXT(close)(fd);
    if (failed) errno = EIO;
    return failed ? -1 : done;
}

int linkat(int from, const char *old, int to, const char *new, int flags)
{
    return fails("linkat") ? -1 : NEXT(linkat)(from, old, to, new, flags);
}

int flock(int fd, int what) { return fails("flock") ? -1 : NEXT(flock)(fd, what); }

/* It returns its error. */
int posix_fadvise64(int fd, off64_t from, off64_t length, int advice)
{
    return fails("fadvise") ? errno : NEXT(posix_fadvise64)(fd, from, length, advice);
}

int posix_fadvise(int fd, off_t from, off_t length, int advice) { return posix_fadvise64(fd, from, length, advice); }

int openat64(int folder, const char *name, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    if ((flags & O_TMPFILE) == O_TMPFILE && fails("tmpfile")) return -1;
    return NEXT(openat64)(folder, name, flags, mode);
}

int renameat(int from, const char *old, int to, const char *new)
{
    return fails("rename") ? -1 : NEXT(renameat)(from, old, to, new);
}
"""

EVER = 1 << 30


def library(folder: Path) -> Path:
    """The library, built there; skips the test where no compiler is."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    (folder / "preload.c").write_text(SOURCE)
    built = folder / "preload.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", built, folder / "preload.c", "-ldl"], check=True)
    return built


def under(built: Path, **settings: object) -> list[str]:
    """What stands before a command line to have the library in it, with its settings: SHORT, INTERRUPT, DELAY_MS."""
    return ["env", f"LD_PRELOAD={built}", *(f"{name}={value}" for name, value in settings.items())]


def failing(built: Path, call: str, error: int, first: int = 1, last: int = EVER) -> list[str]:
    """The same, where the calls from the `first` to the `last` fail with an errno."""
    assert os.strerror(error)
    return under(built, FAULT=f"{call} {error} {first} {last}")
