"""Every sentence about a guest or a QEMU that migrate, receive and their guardians can say, and what makes it true.

`check` takes what was said apart and holds each sentence against what the QEMUs themselves told and were. One that is
not known here and speaks of a guest or a QEMU is a failure: it has to be added, with what it claims.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.qemu.late import SIDES, History, Line, Move


@dataclass(frozen=True)
class Scene:
    """Who said it, when, and what was so: `here` is the QEMU of who speaks, `there` the other one."""

    it: Move
    side: str
    line: Line
    histories: dict[str, History]

    @property
    def here(self) -> History:
        return self.histories[self.side]

    @property
    def other(self) -> str:
        return SIDES[1 - SIDES.index(self.side)]

    @property
    def there(self) -> History:
        return self.histories[self.other]

    def turned(self) -> Scene:
        """The same, as the other side would see it."""
        return Scene(self.it, self.other, self.line, self.histories)


Claim = Callable[[Scene], bool]


def nothing(scene: Scene) -> bool:
    """It claims nothing of where a guest runs."""
    return True


def ended_here(scene: Scene) -> bool:
    return scene.line.ended[scene.side]


def never_ran_here(scene: Scene) -> bool:
    """Not before it was said, and not after."""
    return ended_here(scene) and not scene.here.ever


READ = 0.3
"""Seconds from a word's being said to its being read, on a busy machine: what is so may have changed in between."""


def runs_here(scene: Scene) -> bool:
    at = scene.line.at
    return not ended_here(scene) and (scene.here.ran(at) or scene.here.ran(at - READ))


def stands_here(scene: Scene) -> bool:
    at = scene.line.at
    return not ended_here(scene) and not (scene.here.ran(at) and scene.here.ran(at - READ))


def runs_there(scene: Scene) -> bool:
    return runs_here(scene.turned())


def ended_with_guest(scene: Scene) -> bool:
    return ended_here(scene) and not scene.there.ever


def committed(scene: Scene) -> bool:
    """GO was written down."""
    return any(state == "COMMITTED" for state, _ in scene.it.steps["migrate"].told)


def told_to_run(scene: Scene) -> bool:
    """That, and the guest does not run here."""
    return committed(scene) and stands_here(scene)


def not_given_away(scene: Scene) -> bool:
    """The other host's guest did not run, and does not."""
    return not scene.there.ever


def did_not_run_here(scene: Scene) -> bool:
    return not scene.here.ever


def lives_here(scene: Scene) -> bool:
    return not ended_here(scene)


HERE = r"QEMU here \(process \d+\)"

OWN = "(: its own messages .*)?"
"""What may follow: where QEMU's standard error is."""

KNOWN: list[tuple[str, Claim]] = [
    # migrate: how it ended
    (r"the guest runs at \S+: [\d.]+ s, it was stopped for \d+ ms", runs_there),
    (r".* sent(, .* of them twice)?, \d+ rounds over .* of memory", nothing),
    (r"the guest is running here, as before", runs_here),
    (r"the guest is paused here, as before", stands_here),
    (r"the guest is here", lives_here),
    (r"QEMU reports postmigrate", stands_here),
    (r"the guest is at \S+, paused as it was: .*", nothing),
    (r"the guest (runs|is paused) at \S+", nothing),
    (r"\S+ was told to run the guest and cannot be reached: whether it does is not known here", told_to_run),
    (r"\S+ was told to run the guest, and whether it does is not known here(: .*)?", told_to_run),
    (r"the guest here stays stopped until you decide", stands_here),
    (r"QEMU has ended, and the guest with it: .*", ended_with_guest),
    (r"the guest is here but does not run: .*", stands_here),
    (r"QEMU here does not answer", nothing),
    (r"the guest was not given away(, and whether it runs here is not known(: .*)?)?", not_given_away),
    (r"its run state here is not known: .*", nothing),
    # migrate: what it waits for
    (r"the guest here is stopped meanwhile", stands_here),
    (r"\S+ was asked whether all is well and has not answered", nothing),
    (r"the last bytes are being sent to \S+", nothing),
    (r"\S+ has the whole guest, but QEMU here has not reported that yet", nothing),
    (r"\S+ has not reported yet that it has the whole guest", nothing),
    (r"QEMU here was told to cancel the migration and has not answered", nothing),
    (r"QEMU here has not reported yet that the guest is as it was before", nothing),
    (r"\S+ was told to run the guest and has not confirmed that it runs", told_to_run),
    (r"until then the guest here stays stopped, even if .*", stands_here),
    # receive: how it ended
    (r"the QEMU here has ended, and its guest never ran", never_ran_here),
    (r"\S+ has given its guest away", nothing),
    (r"here it is running", runs_here),
    (r"here it is paused", stands_here),
    (HERE + r" was told to run the guest and has ended: whether the guest ran here is not known: .*", ended_here),
    (HERE + r" was told to run the guest and lives, .*: whether the guest ran here is not known: .*", lives_here),
    (r"the source keeps its guest as it was", nothing),
    (r"before it may run there, this QEMU must have ended", nothing),
    (HERE + r" was killed and has not ended yet \(it may be waiting for a disk\)", lives_here),
    (r"its guest never ran", did_not_run_here),
    # receive: what it waits for
    (r"listening at .* for a guest", nothing),
    (r"the whole guest is here, paused", stands_here),
    (r"the source has not allowed it to run yet", nothing),
    (HERE + r" was told to run the guest and has not answered", nothing),  # it may as that is read
    (r"until then, whether the guest runs here is not known, and statepipe waits", nothing),
    (r"if it is killed, its guardian waits instead", nothing),
    (HERE + r" was told to end and has not ended yet", did_not_run_here),  # it may end as that is read
    # what a person is to do: the test follows it
    (r"look there( first, with statepipe resolve)?", nothing),
    (r"if it runs( there)?: statepipe resolve --qmp \S+ elsewhere", nothing),
    (r"if it does not: statepipe resolve --qmp \S+ here", nothing),
    (r"if it does not, it may yet: end its QEMU there .*, and only then: statepipe resolve --qmp \S+ here", nothing),
    (r"(then|once it answers): statepipe resolve --qmp \S+ here", nothing),
    (r"see: statepipe resolve --help", nothing),
    # the guardians
    (r"the migration is undone, the guest here is running", runs_here),
    (r"the QEMU that waited here for the guest is ended", ended_here),
    (r"the guest runs here", runs_here),
    (r"the QEMU that waited here for the guest \(process \d+\) was killed and has not ended yet", lives_here),
    (r"QEMU here has ended after it was told to run the guest: whether the guest ran here is not known", ended_here),
    (r"the guest is here and does not run, as before", stands_here),
    (r"the guest may run or have run on the other host, and whether it does is not known here", told_to_run),
    (r"the guest runs on the destination", runs_there),
    (r"nothing is done about it", nothing),
    # why, and nothing of where
    (r"the switchover took longer than [\d.]+ s: .*", nothing),
    (r"QEMU here has ended" + OWN, ended_here),
    (r"QEMU has ended before its guest could run" + OWN, ended_here),
    (r"\S+ has not reported yet whether it has the whole guest", nothing),
    (r"the guest runs as soon as it can, perhaps when a disk answers", nothing),
    (r"QEMU has not finished its migration", nothing),
    (r"the guest could not be taken: .*", nothing),
    (r"QEMU's migration settings are not as before: .*", nothing),
    (r"command line: only here: .*", nothing),
    (r"only there: .*", nothing),
    (r"(QEMU at \S+|the QEMU that was started here) has not answered [\w-]+ for \d+ s.*", nothing),
    (r"QEMU does not answer [\w-]+.*", nothing),
    (r"check at (QEMU at \S+|the QEMU that was started here) whether its guest runs.*", nothing),
    (r"(QEMU at \S+|the QEMU that was started here) still reports finish-migrate: its guest is stopped", nothing),
    (r"no greeting at \S+: another client may be connected", nothing),
    (r"QEMU serves one at a time.*", nothing),
    (r"QEMU (refused|went away during) [\w-]+.*", nothing),
    (r"QEMU reports that the migration (failed|was cancelled).*", nothing),
    (r"QEMU stopped reading the guest(: .*)?", nothing),
    (r"QEMU closed the return path(: .*)?", nothing),
    (r"its own message is above", nothing),
    (r"(its own messages are on its standard error|its messages are in) .*on its host", nothing),
]
"""A sentence, whole, and what has to be so when it is said. The first that fits counts."""

_HEAD = re.compile(r"statepipe: (?:(?:hint|migrate|receive): )?(?:(?:error|warning): )?")
_OF_THE_OTHER = re.compile(r"(?:the other host|\S+) says: ")
_BROKEN_OFF = re.compile(
    r"statepipe (?:ended unexpectedly|left the rest to its guardian)(, and its work could not be undone)?: "
)
_SPEAKS_OF_IT = re.compile(r"guest|QEMU|runs? |ran\b", re.IGNORECASE)


def check(it: Move) -> None:
    """Each sentence that both statepipes and their guardians have said, once all is over."""
    histories = it.look_back()
    for side in SIDES:
        for line in it.lines[side]:
            for sentence in _BROKEN_OFF.sub("", _HEAD.sub("", line.text, count=1)).split("; "):
                _check(sentence, Scene(it, side, line, histories))


def _check(sentence: str, scene: Scene) -> None:
    if of_the_other := _OF_THE_OTHER.match(sentence):
        _check(sentence[of_the_other.end() :], scene.turned())
        return
    claim = next((claim for pattern, claim in KNOWN if re.fullmatch(pattern, sentence)), None)
    if claim is None:
        assert not _SPEAKS_OF_IT.search(sentence), f"nobody knows what this claims: {sentence!r}"
        return
    if not claim(scene):
        facts = "; ".join(f"{side}: {history}" for side, history in scene.histories.items())
        when = f"at {scene.line.at:.3f}, ended: {scene.line.ended}"
        raise AssertionError(f"{scene.side} says what is not so ({claim.__name__}): {sentence!r} {when}; {facts}")
