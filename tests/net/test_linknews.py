"""A link that is down for long is told of on both sides, once, and so is its return."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from statepipe.cli.network import plan_of
from statepipe.ends.ration import Ration
from statepipe.session.linknews import QUIET, REMINDER, LinkNews
from statepipe.session.overtls import timing
from tests.conformance.running import PATIENCE
from tests.net.homes import DATA, MIB, World, finish, receiving, sending
from tests.net.relay import Faults, relay


def said_by(process: subprocess.Popen[bytes]) -> str:
    """The next line that it says."""
    return process.stderr.readline().decode()


def test_a_link_that_is_down_and_back_is_told_on_both_sides(world: World, tmp_path: Path) -> None:
    """A stream that stands still is not silent: a person would take it for broken, and end it."""
    out, retry = tmp_path / "out", ["--retry", str(PATIENCE)]
    with receiving(world, out) as receiver, relay(receiver.port, Faults()) as rail:
        with sending(world, rail.port, *retry, "--timeout", "600") as sender:
            sender.stdin.write(DATA[:MIB])
            sender.stdin.flush()
            while not rail.bytes > MIB:
                assert sender.poll() is None
            rail.faults.clear.clear()
            for process, verb in ((sender, "send"), (receiver.process, "recv")):
                assert re.match(rf"statepipe: {verb}: nothing has arrived from \S+ for 3 s", said_by(process))
            rail.faults.clear.set()
            for process, verb in ((sender, "send"), (receiver.process, "recv")):
                assert re.match(rf"statepipe: {verb}: \S+ is back after \d+ s\n", said_by(process))
            finish(sender, DATA[MIB:])
        assert receiver.ended() == (0, ""), "and nothing more is said"
    assert out.read_bytes() == DATA


def told(*looks: tuple[float, bool], patience: float = 30) -> list[str]:
    lines: list[str] = []
    news = LinkNews(lambda kind, text: lines.append(text), "far", patience)
    for seconds, heard in looks:
        news.look(seconds, OSError("cut"), heard=heard)
    return lines


def test_a_link_that_is_made_anew_at_once_is_no_news() -> None:
    assert told((1, True), (1, False), (QUIET - 2, False), (1, True), (QUIET - 1, False), (1, True)) == []


def test_a_session_that_ends_as_soon_says_only_that() -> None:
    assert told((QUIET, False), (1, True), patience=0.5) == []


def test_one_that_stays_away_is_told_again_each_minute() -> None:
    lines = told((QUIET, False), *[(1.0, False)] * int(REMINDER), (1, False), (1, True), (1, True))
    assert lines == [
        "nothing has arrived from far for 3 s (cut); waiting up to 30 s",
        "nothing has arrived from far for 63 s (cut); waiting up to 30 s",
        "far is back after 64 s",
    ]


def test_links_that_come_and_go_fill_no_log() -> None:
    """However often within a minute: the first time is told."""
    lines: list[str] = []
    news = LinkNews(Ration(lines.append, 4, "and {} more").tell, "far", 30)
    for _ in range(50):
        news.look(QUIET, None, heard=False)
        news.look(1, None, heard=True)
    assert lines == ["nothing has arrived from far for 3 s; waiting up to 30 s", "far is back after 3 s"]


def test_how_to_wait_longer_is_told_by_verbs_that_have_a_way() -> None:
    values = {"tls_creds": None, "peer": None}
    assert timing(plan_of("check", "tls://far", [], values, None)).longer == ""
    assert "--retry" in timing(plan_of("migrate", "tls://far", [], values | {"retry": None}, None)).longer
