"""The pages of a saved guest, served to a QEMU that runs it already.

One thread reads the requests of the guest and answers them. Another thread, the background, sends all other pages in
the file's order, so that frames are decoded one after the other. A request comes first: the background pauses, the
requested page is the first of its section, and the rest of its frame is sent next. The socket's buffer is small
(BUFFERED), since a request waits for all that is queued in it.

Pages of the working set are sent before the guest runs. While a new one is learned, the background waits, and a request
brings the pages that it names and no others: so all that the guest touches is seen.

No page is sent twice: QEMU closes the connection when it receives a page again. Pages of zeros are sent only when they
are requested: memory that was never received reads as zeros after the end.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from queue import SimpleQueue
from struct import Struct

from statepipe.errors import IntegrityError
from statepipe.formats.qemu import postcopy
from statepipe.formats.qemu.pages import STORED, Run
from statepipe.formats.qemu.postcopy import Answers, Asked, Block, Pong, Received, Resumed, Shut
from statepipe.formats.qemu.ram import ORDINARY_AGAIN
from statepipe.lazy.waits import Waits
from statepipe.lazy.workingset import FirstPages, Recorder, page_set
from statepipe.pipeline.signals import ignore
from statepipe.stage import Cancelled
from statepipe.stages.throttle import LONGEST_WAIT, Bucket
from statepipe.state.pagestore import FrameDamaged, Pages, PageStore
from statepipe.threads import join, start
from statepipe.typed import NamedTuple

BUFFERED = 256 << 10
"""Bytes of the socket's buffer. A request waits for the pages in it; QEMU takes 0.2 ms for 64 pages."""

SECTION = 64
"""The most pages of a section. A request waits for the section that is being sent."""

NEXT = 32
"""How many frames, of which a page was requested, are sent before all others. Further ones are sent in the file's
order."""

RECORDS = 256
"""The most runs of a section that is sent before the guest runs; sendmsg(2) takes two buffers for each, 1024 in all."""

READ = 64 << 10


class Damaged(NamedTuple):
    """A frame cannot be read; its pages were not sent. `error` names one of them; `asked` is the guest's request."""

    error: IntegrityError
    asked: Asked | None


class Failed(NamedTuple):
    """A thread of the server has failed: the file, the connection (OSError, EOFError) or the destination."""

    error: BaseException


class AllSent(NamedTuple):
    """All pages that can be read were sent, and the end of the stream too, unless frames are damaged."""


class Learned(NamedTuple):
    """The time to learn is over: the pages that the guest asked for, and those that were sent first."""

    recorder: Recorder


News = Damaged | Failed | AllSent | Learned | Pong | Received | Resumed | Shut


class Figures:
    """How many pages the destination has, of the `total` that are stored. Another statepipe sent `before` of them;
    `first` were sent before the guest ran. `pushed` is when the background began, and how many there were by then."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.pages = self.before = self.first = self.zeros = 0
        self.pushed: tuple[float, int] | None = None
        self.waits = Waits()


class Server:
    """Serves the pages of `store` over `link` to a destination that has these `blocks`, in the stream's order.

    `begin` writes the first bytes and starts to answer requests; `push` starts the background. `news` reports what
    happens.
    """

    def __init__(
        self, store: PageStore, link: socket.socket, blocks: Sequence[Block], clock: Callable[[], float]
    ) -> None:
        self._store, self._link, self._clock = store, link, clock
        self._index = store.index
        self._blocks = blocks
        self._numbers = {block.name: number for number, block in enumerate(blocks)}
        self.sent = page_set(store)
        self.news: SimpleQueue[News] = SimpleQueue()
        self.figures = Figures(self._index.stored)
        outline = self._index.outline
        self._ending = postcopy.footer(outline.ram_section) if outline.footers else b""
        self._head = postcopy.part_head(outline.ram_section)
        self._lock = threading.Lock()  # of the link, and of what was sent
        self._last = -1  # the block that the last record named
        self._ended = False  # the end was sent
        self._calm = threading.Event()  # no request is being answered
        self._calm.set()
        self._next: deque[Pages] = deque(maxlen=NEXT)
        self._damaged: set[int] = set()
        self._at_trouble: Callable[[], None] = ignore
        self._is_in_trouble = False
        self.failure: BaseException | None = None  # why no more pages can be read
        self._recorder: Recorder | None = None
        self._bucket = Bucket(None)
        self._rate_changed = threading.Condition()
        self._stopped = False
        self._threads: list[threading.Thread] = []

    # --- called by the main thread

    def at_trouble(self, do: Callable[[], None]) -> None:
        """Have `do` called at each damaged frame, and when no more pages can be read, by any thread: the main thread
        may be waiting for a QEMU that waits for such a page."""
        self._at_trouble = do
        if self._is_in_trouble:
            do()

    @property
    def has_damage(self) -> bool:
        """Whether a damaged frame was found."""
        return bool(self._damaged)

    def begin(self, opening: bytes, package: bytes = b"", first: FirstPages | None = None) -> None:
        """Write `opening`, the pages of `first` and `package`, and answer requests from now on."""
        self._run("pages asked for", lambda: self._serve(opening, package, first))

    def learn(self, first: FirstPages | None) -> None:
        """Record the pages that are asked for, besides those of `first`. Call it before `begin`."""
        self._recorder = Recorder(self._store, None if first is None else first.pages)

    def push(self, after: float = 0) -> None:
        """Start the background after so many seconds. If the server learns, it does so until then."""
        self._run("pages", lambda: self._push(after))

    def write(self, data: bytes) -> None:
        """Write commands between sections. Raises OSError."""
        with self._lock:
            self._link.sendall(data)

    def _take(self, received: Received) -> None:
        """Count the pages that the destination reports as sent."""
        number = self._numbers[received.block]
        self.sent.take(number, received.bitmap)
        runs = (run for run in self._index if run.block == number and run.kind == STORED)
        has = sum(run.pages - self.sent.lacks(number, run.page, run.pages) for run in runs)
        self.figures.pages += has
        self.figures.before += has

    def set_rate(self, rate: int | None) -> None:
        """Limit the background to so many bytes a second; None lifts the limit."""
        with self._rate_changed:
            self._bucket.set_rate(rate, self._clock())
            self._rate_changed.notify_all()

    @property
    def rate(self) -> int | None:
        """The rate that was set."""
        return self._bucket.rate

    def close(self) -> None:
        """Close the connection, and wait for the threads."""
        self._stopped = True
        self._store.give_up()
        with suppress(OSError):  # the other side has, too
            self._link.shutdown(socket.SHUT_RDWR)
        with self._rate_changed:
            self._rate_changed.notify_all()
        self._calm.set()
        for thread in self._threads:
            join(thread)

    def _run(self, name: str, work: Callable[[], None]) -> None:
        def told() -> None:
            try:
                work()
            except BaseException as error:  # passed on: the main thread raises it
                self.news.put(Failed(error))
                if not isinstance(error, OSError | EOFError | Cancelled):  # QEMU closed the connection, or we did
                    self.failure = error
                    self._troubled()

        thread = threading.Thread(target=told, name=name, daemon=True)
        self._threads.append(thread)
        start(thread)

    # --- requests

    def _serve(self, opening: bytes, package: bytes, first: FirstPages | None) -> None:
        """Raises OSError, EOFError, IntegrityError."""
        self.write(opening)
        if first is not None:
            self._send_first(first)
        self.write(package)
        answers = Answers({block.name: block for block in self._blocks})
        while data := self._link.recv(READ):
            arrived = self._clock()
            self._calm.clear()
            try:
                for answer in answers.feed(data):
                    if isinstance(answer, Asked):
                        self._answer(answer)
                        self.figures.waits.add(self._clock() - arrived)
                    else:
                        if isinstance(answer, Received):  # requests for other pages may follow at once
                            self._take(answer)
                        self.news.put(answer)
            finally:
                self._calm.set()
        raise EOFError

    def _answer(self, asked: Asked) -> None:
        """Send the requested pages that were not sent yet."""
        block = self._numbers[asked.block]
        page, stop = asked.page, asked.page + asked.pages
        while page < stop:
            if (recorder := self._recorder) is not None:
                recorder.add(block, page)
            run = self._index.find(block, page)
            if run is None or run.kind != STORED:
                self._send_zero(block, page)
            elif self.sent.lacks(block, page, 1):
                self._send_asked(asked, run, page)
            page += 1

    def _send_zero(self, block: int, page: int) -> None:
        with self._lock:
            if self._ended or not self.sent.add(block, page, 1):
                return
            self._write(self._zero_records(block, page))
            self.figures.zeros += 1

    def _send_asked(self, asked: Asked, run: Run, page: int) -> None:
        """Send the page and those that follow it. The background sends the rest of the frame next.

        While the server learns, only the page is sent.
        """
        most = SECTION if self._recorder is None else 1
        place = run.place + (page - run.page) * self._index.stride
        number = self._store.frame_for(place)
        try:
            pages = self._store.pages(number)
            for each, data in pages:
                if each.block == run.block and each.page <= page < each.page + each.pages:
                    skipped = page - each.page
                    self._send(each, data, skipped, min(each.pages - skipped, most))
                    break
            else:  # it ends in the next frame, which is damaged
                self._store.stream_bytes(place, place + postcopy.PAGE_SIZE)
        except FrameDamaged as error:
            self._damage(error, asked)
            return
        if self._recorder is None:
            self._next.append(pages)

    def _damage(self, error: FrameDamaged, asked: Asked | None) -> None:
        """Report a damaged frame once, and again for each request for a page of it."""
        if error.frame in self._damaged and asked is None:
            return
        self._damaged.add(error.frame)
        what = str(error)
        if asked is not None:
            what += f"; it holds the page at {asked.page * postcopy.PAGE_SIZE:#x} of {asked.block}"
        elif first := next(self._index.stored_between(*self._store.span(error.frame)), None):
            what += f"; it holds the page at {first.page * postcopy.PAGE_SIZE:#x} of {self._blocks[first.block].name}"
        self.news.put(Damaged(IntegrityError(what, offset=error.offset), asked))
        self._troubled()

    def _troubled(self) -> None:
        self._is_in_trouble = True
        self._at_trouble()

    # --- the working set

    def _send_first(self, first: FirstPages) -> None:
        """Raises OSError, StatepipeError."""
        for chosen in first.frames():
            for run, _, page, count in chosen:
                self.sent.add(run.block, page, count)
                self.figures.pages += count
            self._write_first([self._records(*each) for each in chosen])
        self.figures.first = self.figures.pages
        for block, page in first.zeros:
            self.sent.add(block, page, 1)
        self._write_first([self._zero_records(*zero) for zero in first.zeros])
        self.figures.zeros += len(first.zeros)
        self._last = -1  # QEMU loads what follows in another way

    def _write_first(self, records: Sequence[Sequence[bytes | memoryview]]) -> None:
        with self._lock:
            for at in range(0, len(records), RECORDS):
                self._write([buffer for each in records[at : at + RECORDS] for buffer in each])

    # --- the background

    def _push(self, after: float) -> None:
        """Raises OSError, StatepipeError."""
        with self._rate_changed:
            self._rate_changed.wait_for(lambda: self._stopped, after)
        if self._stopped:
            raise Cancelled
        if self._recorder is not None:
            self.news.put(Learned(self._recorder))
            self._recorder = None
        self.figures.pushed = self._clock(), self.figures.pages
        at = 0
        while at < self._store.frames:
            try:
                with closing(self._store.ahead(self._lacking(at))) as frames:
                    for _, pages in frames:
                        self._send_next()
                        self._send_all(pages)
                break
            except FrameDamaged as error:
                self._damage(error, None)
                at = error.frame + 1
        self._send_next()
        if not self._damaged:
            with self._lock:
                self._ended = True
                self._link.sendall(postcopy.ram_end(self._index.outline.ram_section, self._ending))
        self.news.put(AllSent())

    def _lacking(self, at: int) -> Iterator[int]:
        """Return the frames from `at` on that have pages to send."""
        for number in range(at, self._store.frames):
            start, stop = self._store.span(number)
            stored = self._index.stored_between(start, stop)
            if any(self.sent.lacks(run.block, run.page, run.pages) for run in stored):
                yield number

    def _send_next(self) -> None:
        """Send the rest of the frames of which a page was requested."""
        with suppress(IndexError):
            while True:
                self._send_all(self._next.popleft())

    def _send_all(self, pages: Pages) -> None:
        for run, data in pages:
            for skipped in range(0, run.pages, SECTION):
                count = min(run.pages - skipped, SECTION)
                if self.sent.lacks(run.block, run.page + skipped, count):
                    self._pace(count * self._index.stride)
                    self._calm.wait()
                    self._send(run, data, skipped, count)

    def _pace(self, size: int) -> None:
        """Wait until the rate allows `size` bytes. Raises Cancelled."""
        with self._rate_changed:
            while size > 0:
                if self._stopped:
                    raise Cancelled
                passed, delay = self._bucket.take(size, self._clock())
                size -= passed
                if not passed:
                    self._rate_changed.wait(min(delay, LONGEST_WAIT))

    # --- the link

    def _send(self, run: Run, data: memoryview, skipped: int, count: int) -> None:
        """Send those of `count` pages of the run that were not sent: one section for each row of them."""
        with self._lock:
            if self._ended:
                return
            for first, length in self.sent.add(run.block, run.page + skipped, count):
                self._write(self._records(run, data, first, length))
                self.figures.pages += length

    def _records(self, run: Run, data: memoryview, first: int, count: int) -> list[bytes | memoryview]:
        """Return the records of `count` pages of the run from `first` on. Raises IntegrityError."""
        at = (first - run.page) * self._index.stride
        part = data[at : at + count * self._index.stride - _BETWEEN]
        self._demand_heads(run, first, part, count)
        return [postcopy.stored_head(self._name(run.block), first), part]

    def _zero_records(self, block: int, page: int) -> list[bytes | memoryview]:
        return [postcopy.zero_page(self._name(block), page)]

    def _demand_heads(self, run: Run, first: int, data: memoryview, count: int) -> None:
        """Raises IntegrityError unless the header of each next page is between two pages, as in the stream."""
        if count > 1:
            size = postcopy.PAGE_SIZE
            start = (first + 1) * size | ORDINARY_AGAIN
            if _heads(count).unpack_from(data) != tuple(range(start, start + (count - 1) * size, size)):
                what = f"the page index of {self._store.name} does not fit its stream, at page {first:#x} of "
                raise IntegrityError(what + repr(self._blocks[run.block].name))

    def _name(self, block: int) -> str | None:
        """Return the block's name, or None if the last record named the same block."""
        if block == self._last:
            return None
        self._last = block
        return self._blocks[block].name

    def _write(self, records: Sequence[bytes | memoryview]) -> None:
        """Write a section. Raises OSError."""
        buffers = [self._head, *records, postcopy.part_end(self._ending)]
        left = sum(map(len, buffers)) - self._link.sendmsg(buffers)
        if left:
            self._link.sendall(b"".join(buffers)[-left:])


_BETWEEN = 8
"""Bytes of a record's header."""

_HEADS: dict[int, Struct] = {}


def _heads(count: int) -> Struct:
    """Return what reads the headers between `count` pages."""
    if count not in _HEADS:
        _HEADS[count] = Struct(">" + f"{postcopy.PAGE_SIZE}xQ" * (count - 1))
    return _HEADS[count]
