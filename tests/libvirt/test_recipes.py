"""docs/coming-from.md for people who come from virsh: what it tells to type, and what virsh does with damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.libvirt.harness import Domain, Libvirt
from tests.recipes import commands, script


@pytest.mark.parametrize("mode", ["system", "newer"])
def test_a_domain_goes_on_through_all_that_the_page_tells_to_type(mode: str, request: pytest.FixtureRequest) -> None:
    libvirt: Libvirt = request.getfixturevalue(mode)
    domain = libvirt.domain("web1")
    folder = libvirt.place("recipes")
    libvirt.run("sh", "-c", script(commands("virsh save"), "web1.key", {}), cwd=folder)
    assert {path.name for path in folder.glob("*.state")} == {"web1.state", "old.state", "kept.state"}
    domain.assert_runs_on()


@pytest.fixture
def saved(session: Libvirt) -> tuple[Domain, Path]:
    """A domain, shut off, and its image."""
    domain = session.domain("web1", fill=24)
    image = session.place("saves") / "web1.save"
    session.virsh("save", "web1", image)
    return domain, image


def flip(path: Path, at: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_virsh_runs_a_domain_whose_memory_changed(session: Libvirt, saved: tuple[Domain, Path]) -> None:
    """If this fails, virsh has learned to tell, and the page is to say so."""
    domain, image = saved
    flip(image, image.stat().st_size // 2)
    session.virsh("restore", image)
    domain.wait_ticks(2)
    assert len({total for _, total in domain.ticks()}) == 2


def test_virsh_runs_a_domain_on_a_disk_that_changed(session: Libvirt, saved: tuple[Domain, Path]) -> None:
    """If this fails, virsh has learned to tell, and the page is to say so."""
    domain, image = saved
    flip(domain.image, 700_000)
    session.virsh("restore", image)
    assert domain.runs()
