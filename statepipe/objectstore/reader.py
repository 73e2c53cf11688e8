"""An object that is read at any offset, or from its beginning to its end, over a network that may break.

    object   | b0 | b1 | b2 | b3 | b4 | b5 | b6 | ...     blocks of 256 KiB
    requests      [ b1   b2   b3 ]    [ b5   b6 ...       one for each row of blocks that are not there

At opening both ends are read at once, and with them what tells this object from any other that gets its name. Each
later request holds on to that: an object that was replaced is an error and never a mixture. A request that breaks is
made again from the block in which it broke, with pauses, until nothing has come for `retry` seconds.

Whoever reads from the beginning to the end has READERS requests ahead of it. Reads at an offset that follow one
another have some ahead, too. All other reads are made at once, and what is read ahead gives way to them. Blocks are
kept until KEPT bytes are there, and in the folder of a cache if one is given (blockcache.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from queue import SimpleQueue

from statepipe.objectstore.address import ObjectAddress
from statepipe.objectstore.blockcache import BLOCK, BlockCache, NoRoom
from statepipe.objectstore.blocks import Blocks
from statepipe.objectstore.failures import Transient, missing, replaced
from statepipe.objectstore.retry import Tries
from statepipe.objectstore.settings import Reading
from statepipe.objectstore.store import ReadingStore, Seen
from statepipe.objectstore.workers import Workers
from statepipe.stage import Cancelled
from statepipe.threads import End, NoThread
from statepipe.typed import Any

ENDS = 1 << 20
"""Bytes that are read of each end at opening: header and first pages; and devices, index, trailer and seek table of a
guest of some GiB. At 1 Gbit/s they take 8 ms, less than a request of its own."""

NEAR = 8 << 20
"""Bytes before the end of which a read brings all that follows: there, one thing is read after the other."""

KEPT = 96 << 20
"""Bytes of blocks that are kept, those included that were read ahead and not used yet."""

READERS = 8
"""Requests ahead of whoever reads all: of S3 each brings 50 to 90 MB/s, so that they fill 5 Gbit/s."""

CHUNK = 8 << 20
"""Bytes of each of these, at most (docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance-design-patterns
advises 8 to 16 MB)."""

LEAST_CHUNK = 1 << 20

FOLLOWING, FOLLOWED = 4, 2 << 20
"""Requests ahead of reads at offsets that follow one another, and their bytes. Those of a guest are more urgent."""

HOPS = 3 << 20
"""Bytes between two reads that still follow one another: several threads read ahead of one another."""

ROW = 3
"""Reads after which those that follow are foreseen: what is read at opening are fewer."""

STREAMS = 4
"""Rows of reads that are followed at once."""

MOST_WORKERS = 32
"""Requests at once: READERS, and one for each thread that reads."""

CALM = 0.2
"""Seconds at most for which a request ahead waits before its next block while an urgent one is under way."""


class _Stream:
    """Reads that follow one another: the block after the last one, the first that was not asked for ahead, and how many
    reads went on."""

    def __init__(self, at: int) -> None:
        self.at = self.ahead = at
        self.reads = 1


class ObjectReader:
    """The object at an address. Any thread may read; `with` closes it. `size` is its bytes.

    Raises Missing, Replaced, PeerError and other StatepipeErrors that name the object and the byte.
    """

    def __init__(self, store: ReadingStore, address: ObjectAddress, how: Reading) -> None:
        self._store, self._address, self._how = store, address, how
        self._stop = End()
        self._tries = Tries(how.retry, how.tell, self._stop)
        self._lock = threading.Lock()
        self._blocks = Blocks(KEPT)
        self._streams: list[_Stream] = []
        self._ahead = self._urgent = 0  # requests under way
        self._calm = threading.Event()  # no urgent one is
        self._calm.set()
        self._doubted: set[int] = set()
        self._workers = Workers(MOST_WORKERS, "requests")
        self._cache: BlockCache | None = None
        self._seen: Seen
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    # --- opening

    def _open(self) -> None:
        if self._how.cache is not None:
            (seen,) = self._all(lambda: self._store.look(self._address))
            if seen is None:
                raise missing(self._address)
            self._know(seen)
            name = BlockCache.name_of(self._store.place, self._address, seen)
            try:
                self._cache = BlockCache(self._how.cache, name, self._how.cache_size, self._how.tell)
                self._workers.run(self._cache.trim)
            except NoRoom as error:
                self._how.tell(f"{error}: what is read is not kept")
            each = ENDS // BLOCK
            for first in {0, max(self._count - each, 0)}:
                for row in self._blocks.claim(first, min(first + each, self._count))[1]:
                    self._ask(*row)
            return
        first, last = self._all(lambda: self._end(0), lambda: self._end(None))
        if first[0].etag != last[0].etag:
            raise replaced(self._address, 0)
        self._know(last[0])
        for _, start, data in (first, last):
            self._put(start, data)

    def _know(self, seen: Seen) -> None:
        self._seen, self.size = seen, seen.size
        self._count = -(-seen.size // BLOCK)

    def _end(self, start: int | None) -> tuple[Seen, int, bytes]:
        """Make one attempt to read the beginning, or the end if `start` is None."""
        with closing(self._store.fetch(self._address, None, start, ENDS)) as found:
            return found.seen, found.start, found.read(found.size)

    def _all(self, *attempts: Callable[[], Any]) -> list[Any]:
        """Make several attempts at once, each again where that may help. Return their results, or raise an error."""
        results: list[Any] = [None] * len(attempts)
        done: SimpleQueue[BaseException | None] = SimpleQueue()

        def work(number: int) -> None:
            try:
                results[number] = self._tries(attempts[number])
                done.put(None)
            except BaseException as error:  # the caller raises it
                done.put(error)

        for number in range(len(attempts)):
            self._workers.run(lambda number=number: work(number))  # type: ignore[misc]
        for _ in attempts:
            if (error := done.get()) is not None:
                raise error
        return results

    def _put(self, start: int, data: bytes) -> None:
        """Keep the blocks that are whole in `data`, which begins at `start`."""
        for number in range(-(-start // BLOCK), -(-(start + len(data)) // BLOCK)):
            at, end = self._span(number)
            if end <= start + len(data) and self._blocks.claim(number, number + 1)[1]:
                self._blocks.arrived(number, data[at - start : end - start])

    def _span(self, number: int) -> tuple[int, int]:
        """Return where a block begins and ends."""
        return number * BLOCK, min((number + 1) * BLOCK, self.size)

    # --- called by who reads

    @property
    def seen(self) -> Seen:
        """What is known of the object."""
        return self._seen

    @property
    def beside(self) -> str | None:
        """A path in the cache for what belongs to the object; None without a cache."""
        return None if self._cache is None else self._cache.beside

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes at `offset`, fewer at the end. Raises StatepipeError, Cancelled."""
        end = min(offset + size, self.size)
        found = []
        while offset < end:
            stop = min(end, offset + CHUNK)
            first, after = offset // BLOCK, -(-stop // BLOCK)
            limit = self._count if self.size - after * BLOCK < NEAR else 0
            blocks, rows = self._blocks.claim(first, after, limit)
            for row in rows:
                self._ask(*row, is_urgent=True)
            self._follow(first, after)
            for number, block in enumerate(blocks, first):
                at = number * BLOCK
                found.append(memoryview(self._blocks.wait(block, self._is_over))[max(offset - at, 0) : stop - at])
            offset = stop
        return b"".join(found)

    def in_order(self, cancelled: Callable[[], bool]) -> Iterator[bytes]:
        """Yield all of it, read ahead. Each block is forgotten when it is yielded. Raises StatepipeError, Cancelled."""
        stream = _Stream(0)
        chunk = max(LEAST_CHUNK, min(CHUNK, self.size // READERS))
        for number in range(self._count):
            stream.at = number
            self._read_ahead(stream, READERS, chunk)
            (block,), rows = self._blocks.claim(number, number + 1)
            for row in rows:
                self._ask(*row)
            data = self._blocks.wait(block, lambda: self._stop.come or cancelled())
            self._blocks.forget([number])
            yield data

    def doubt(self, offset: int, size: int) -> bool:
        """Forget these bytes, which are not what was written. Return whether to read them again may help: once."""
        numbers = range(offset // BLOCK, -(-min(offset + size, self.size) // BLOCK))
        self._blocks.forget(numbers)
        if self._cache is not None:
            for number in numbers:
                self._cache.drop(number)
        is_new = not self._doubted.issuperset(numbers)
        self._doubted.update(numbers)
        return is_new

    def ring(self) -> None:
        """Have all who wait look whether they still want to."""
        self._blocks.ring()

    def _is_over(self) -> bool:
        return self._stop.come

    def give_up(self) -> None:
        """Have all who wait, now or later, raise Cancelled."""
        for _ in range(MOST_WORKERS):
            self._stop.tell()
        self._calm.set()
        self.ring()

    def close(self) -> None:
        """End all requests."""
        self.give_up()
        self._workers.close()
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    # --- reading ahead

    def _follow(self, first: int, after: int) -> None:
        """Read ahead of reads that follow one another, of which the latest has read these blocks."""
        near = HOPS // BLOCK
        with self._lock:
            stream = next((each for each in self._streams if -near <= first - each.at <= near), None)
            if stream is None:
                self._streams = [*self._streams[1 - STREAMS :], _Stream(after)]
                return
            stream.reads += after > stream.at
            stream.at = max(stream.at, after)
        if stream.reads > ROW:
            self._read_ahead(stream, FOLLOWING, FOLLOWED)

    def _read_ahead(self, stream: _Stream, most: int, chunk: int) -> None:
        """Have up to `most` requests for `chunk` bytes under way, of what comes after the stream's place."""
        each = chunk // BLOCK
        while True:
            with self._lock:
                start = stream.ahead = max(stream.ahead, stream.at)
                stop = min(start + each, self._count)
                if start >= stop or self._ahead >= most or start - stream.at >= each * most:
                    return
                stream.ahead = stop
                _, rows = self._blocks.claim(start, stop)
                self._ahead += len(rows)
            for row in rows:
                self._ask(*row, is_ahead=True)

    # --- requests

    def _ask(self, start: int, stop: int, *, is_urgent: bool = False, is_ahead: bool = False) -> None:
        if is_urgent:
            with self._lock:
                self._urgent += 1
                self._calm.clear()

        def ended() -> None:
            with self._lock:
                self._ahead -= is_ahead
                self._urgent -= is_urgent
                if not self._urgent:
                    self._calm.set()

        def work() -> None:
            try:
                self._bring(start, stop, gives_way=is_ahead)
            finally:
                ended()

        try:
            self._workers.run(work)
        except NoThread as error:
            self._blocks.failed(range(start, stop), error)
            ended()
            raise

    def _bring(self, start: int, stop: int, *, gives_way: bool) -> None:
        """Bring these blocks, from the cache or from the store. If that fails, who waits for one hears why."""
        at = start
        try:
            while at < stop:
                after = at
                while after < stop and (data := self._cached(after)) is None:
                    after += 1
                while at < after:
                    at = self._tries(lambda: self._fetch(at, after, gives_way=gives_way))  # noqa: B023
                if at < stop:
                    assert data is not None
                    self._blocks.arrived(at, data)
                    at += 1
        except BaseException as error:
            self._blocks.failed(range(start, stop), error)

    def _cached(self, number: int) -> bytes | None:
        at, end = self._span(number)
        cache = self._cache
        return None if cache is None else cache.get(number, end - at)

    def _fetch(self, first: int, after: int, *, gives_way: bool) -> int:
        """Make one attempt to bring blocks from the store. Return the first that did not come.

        Raises Transient if none came, StatepipeError, Cancelled.
        """
        number = first
        start, end, cache = first * BLOCK, self._span(after - 1)[1], self._cache
        try:
            with closing(self._store.fetch(self._address, self._seen, start, end - start)) as found:
                while number < after:
                    if self._stop.come:
                        raise Cancelled
                    if gives_way and self._urgent:
                        self._calm.wait(CALM)
                    at, end = self._span(number)
                    data = found.read(end - at)
                    self._blocks.arrived(number, data)
                    number += 1
                    if cache is not None:
                        cache.put(number - 1, data)
        except Transient:
            if number == first:
                raise
        return number
