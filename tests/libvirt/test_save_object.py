"""save --domain to an object: the domain runs on and no object is there, or it is shut off and the object is whole,
whoever is killed and whatever the store answers."""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.libvirt.harness import Domain, Libvirt
from tests.libvirt.saving import Save, assert_nothing_left, assert_saved, few
from tests.object.conftest import store as store
from tests.object.faulty import ABORT, COMPLETE, LATE, LOOK, LOST, PART, REMOVE, Plan, always, faulty, once
from tests.object.stores import Bucket, Store, environment
from tests.qemu.harness import PATIENCE

BEFORE = ("after Intake.read_beginning", "after ObjectSink.sync", "after Guardian.note NAMING")
"""Steps before the object is there."""

AFTER = ("after ObjectSink.commit", "before answer", "after answer", "after AtWork.has_ended")
"""Steps at which it is."""


@pytest.fixture
def bucket(store: Store, shared: Libvirt, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket that this libvirtd's clients reach."""
    for name, value in environment(store.endpoint).items():
        monkeypatch.setitem(shared.environment, name, value)
    yield store.bucket()


def saving(bucket: Bucket, libvirt: Libvirt, domain: Domain, *words: object, strike: object = None) -> Save:
    """A save of the domain to an object."""
    return Save(libvirt, domain, *words, address=bucket.address("vm1.state"), strike=strike)  # type: ignore[arg-type]


def assert_runs_on(save: Save, bucket: Bucket, uploads: Sequence[str] = ()) -> None:
    """The domain runs on and counts, no object is there, and no more than these uploads are left."""
    save.domain.assert_runs_on()
    assert bucket.keys() == [], save.stderr
    assert bucket.uploads() == list(uploads), save.stderr
    assert_nothing_left(save)


def test_a_domain_is_saved_to_an_object_and_loaded_from_it(
    shared: Libvirt, domain: Domain, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = saving(bucket, shared, domain)
    assert save.end() == 0, save.stderr
    assert f"save: {save.output}: " in save.stderr and "is now shut off (saved)" in save.stderr
    assert bucket.keys() == ["vm1.state"] and bucket.uploads() == []
    assert_saved(save)
    again = saving(bucket, shared, domain)
    assert again.end() == 2 and f"{save.output} exists already" in again.stderr
    domain.assert_runs_on()
    refused = saving(bucket, shared, domain, "--overwrite")
    assert refused.end() == 2 and "--overwrite and --domain exclude each other for an object" in refused.stderr
    domain.assert_runs_on()


@pytest.mark.parametrize("step", few(BEFORE, "after Guardian.note NAMING"))
def test_killed_before_the_object_is_there_the_domain_runs_on(
    shared: Libvirt, domain: Domain, bucket: Bucket, step: str
) -> None:
    save = saving(bucket, shared, domain, strike=(signal.SIGKILL, step))
    assert save.end() == -signal.SIGKILL, save.stderr
    assert f"ended unexpectedly: there is no object, and the domain {domain.name} runs on" in save.stderr
    assert_runs_on(save, bucket, () if step == BEFORE[-1] else ["vm1.state"])  # the guardian ends it once it knows it


@pytest.mark.parametrize("step", few(AFTER, "after ObjectSink.commit", "after answer"))
def test_killed_after_that_the_domain_is_saved(shared: Libvirt, domain: Domain, bucket: Bucket, step: str) -> None:
    save = saving(bucket, shared, domain, strike=(signal.SIGKILL, step))
    assert save.end() == -signal.SIGKILL, save.stderr
    assert f"{save.output} holds the whole state, and the domain {domain.name} is shut off" in save.stderr
    assert_saved(save)


@pytest.mark.parametrize("step", few(BEFORE, "after ObjectSink.sync"))
def test_stopped_before_that_the_domain_runs_on_and_nothing_is_left(
    shared: Libvirt, domain: Domain, bucket: Bucket, step: str
) -> None:
    save = saving(bucket, shared, domain, strike=(signal.SIGTERM, step))
    assert save.end() == 128 + signal.SIGTERM, save.stderr
    assert f"the domain {domain.name} runs on" in save.stderr
    assert_runs_on(save, bucket)


FAULTS: dict[str, tuple[Plan, int, str]] = {
    "part refused": (always(PART, "quota"), 1, "have its quota raised"),
    "commit refused": (always(COMPLETE, "denied"), 1, "s3:PutObject"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_store_that_refuses_leaves_the_domain_running(
    shared: Libvirt, domain: Domain, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plan, status, words = FAULTS[name]
    with faulty(bucket.store, plan) as endpoint:
        monkeypatch.setitem(shared.environment, "AWS_ENDPOINT_URL_S3", endpoint)
        save = saving(bucket, shared, domain)
        assert save.end() == status, save.stderr
    assert words in save.stderr and f"the domain {domain.name} runs on" in save.stderr
    assert_runs_on(save, bucket)


def test_a_lost_answer_to_the_commit_is_looked_up_and_the_domain_is_saved(
    shared: Libvirt, domain: Domain, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(bucket.store, once(COMPLETE, LOST)) as endpoint:
        monkeypatch.setitem(shared.environment, "AWS_ENDPOINT_URL_S3", endpoint)
        save = saving(bucket, shared, domain)
        assert save.end() == 0, save.stderr
        assert_saved(save)


def test_killed_with_a_store_that_is_silent_then_the_domain_runs_on_and_it_is_told(
    shared: Libvirt, domain: Domain, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object is there, and the guardian cannot know it."""
    is_silent = False

    def plan(kind: str) -> str | None:
        return "denied" if is_silent and kind in (LOOK, ABORT, REMOVE) else None

    with faulty(bucket.store, plan) as endpoint:
        monkeypatch.setitem(shared.environment, "AWS_ENDPOINT_URL_S3", endpoint)
        save = saving(bucket, shared, domain, strike=(signal.SIGSTOP, "after ObjectSink.commit"))
        save.wait_at_step()
        is_silent = True
        save.process.kill()
        assert save.end() == -signal.SIGKILL, save.stderr
    assert f"{save.output} could not be taken back: " in save.stderr
    assert "remove it if it is there, as its guest is not saved" in save.stderr
    assert f"the domain {domain.name} runs on" in save.stderr
    domain.assert_runs_on()
    assert bucket.keys() == ["vm1.state"]


@contextmanager
def unanswered(
    shared: Libvirt, domain: Domain, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> Iterator[Save]:
    """A save whose object is made, and which is not told so: when it begins to remove it, it is struck."""
    is_made = threading.Event()

    def plan(kind: str) -> str | None:
        if kind != COMPLETE:
            return None
        is_made.set()
        return LATE

    with faulty(bucket.store, plan) as endpoint:
        monkeypatch.setitem(shared.environment, "AWS_ENDPOINT_URL_S3", endpoint)
        save = saving(bucket, shared, domain, strike=(number, "before ObjectSink.__exit__"))
        assert is_made.wait(PATIENCE), save.process.poll()
        yield save
    assert f"the domain {domain.name} runs on" in save.stderr
    assert_runs_on(save, bucket)


def test_killed_before_it_has_removed_what_an_unanswered_commit_made_the_guardian_does(
    shared: Libvirt, domain: Domain, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirt was refused by then, and the guardian is still there for the object."""
    with unanswered(shared, domain, bucket, monkeypatch, signal.SIGKILL) as save:
        save.process.terminate()
        assert save.end() == -signal.SIGKILL, save.stderr
    assert "ended unexpectedly: there is no object" in save.stderr


@pytest.mark.faults
def test_the_guardian_ends_no_guest_whose_object_is_being_removed(
    shared: Libvirt, domain: Domain, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save has no descriptor left to refuse libvirt with, so the guardian answers; the object is removed."""
    with unanswered(shared, domain, bucket, monkeypatch, signal.SIGSTOP) as save:
        before = resource.prlimit(save.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(save.process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
        save.process.terminate()
        save.wait_at_step()
        resource.prlimit(save.process.pid, resource.RLIMIT_NOFILE, before)
        assert "after Guardian.note over" not in save.steps()  # the guardian waits
        save.go()
        assert save.end() == 128 + signal.SIGTERM, save.stderr
