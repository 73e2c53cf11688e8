"""load --domain: libvirt restores the domain, and nothing of a state that is not whole ever runs."""

from __future__ import annotations

import pytest

from tests.libvirt.harness import Libvirt


@pytest.mark.parametrize("mode", ["session", "system", "newer"])
def test_an_image_of_libvirts_goes_on(mode: str, request: pytest.FixtureRequest) -> None:
    libvirt: Libvirt = request.getfixturevalue(mode)
    domain = libvirt.domain()
    image = libvirt.place("saves") / "image"
    libvirt.virsh("save", "vm1", image)
    done = libvirt.statepipe("load", "--domain", image, check=True)
    assert done.stderr.endswith(f"{image} is loaded and verified; the domain vm1 is running (restored)\n")
    domain.assert_runs_on()
    assert list((libvirt.folder / "run").rglob("load-*")) == []
