"""`make install`: what is put where, that it runs from there, and that nothing of it is left by `make uninstall`."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NETWORK = ("No matching distribution", "Could not fetch URL", "Temporary failure in name resolution")


def make(target: str, destination: Path | str, prefix: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["make", target, f"DESTDIR={destination}", f"PREFIX={prefix}", *words]
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "lock").open("w") as lock:  # another worker may be making build/installer
        fcntl.flock(lock, fcntl.LOCK_EX)
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600, umask=0o077
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """DESTDIR and PREFIX, a path that is not there yet."""
    folder = tmp_path_factory.mktemp("install")
    done = make("install", folder / "root", folder / "opt")
    if done.returncode and any(word in done.stderr for word in NETWORK):
        pytest.skip("the packages of requirements.lock cannot be had from here")
    assert done.returncode == 0, done.stderr
    yield folder / "root", folder / "opt"


def test_what_is_installed_runs_from_its_prefix_and_goes_again(installed: tuple[Path, Path]) -> None:
    destination, prefix = installed
    staged = Path(f"{destination}{prefix}")
    files = {str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()}
    assert {
        "bin/statepipe",
        "share/man/man1/statepipe.1",
        "share/man/man1/statepipe-save.1",
        "share/man/man1/statepipe-decrypt.1",
        "share/man/man5/statepipe-state.5",
        "share/bash-completion/completions/statepipe",
        "lib/systemd/system/statepipe-receive@.service",
        "lib/systemd/system/statepipe-receive@.socket",
        "lib/sysusers.d/statepipe.conf",
        "lib/tmpfiles.d/statepipe.conf",
        "lib/statepipe/statepipe/cli/main.py",
    } <= files
    for name in files:
        path = staged / name
        assert not stat.S_IMODE(path.stat().st_mode) & 0o022, f"{name} may be written by others"
        if not name.startswith("lib/statepipe/"):
            assert path.stat().st_size and str(destination) not in path.read_text(), name
    for path in (staged, *staged.rglob("*")):
        assert path.stat().st_mode & (0o005 if path.is_dir() else 0o004), f"others cannot read {path}"
    interpreter = Path((staged / "bin/statepipe").read_text().split()[0].removeprefix("#!"))
    assert all(folder.stat().st_mode & 0o001 for folder in interpreter.parents), f"others cannot start {interpreter}"
    unit = (staged / "lib/systemd/system/statepipe-receive@.service").read_text()
    assert f"ExecStart={prefix}/bin/statepipe receive" in unit

    os.rename(staged, prefix)  # as a package's files come to where they belong
    run = [str(prefix / "bin" / "statepipe")]
    alone = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    packed = subprocess.run([*run, "compress"], input=b"data" * 9999, stdout=subprocess.PIPE, check=True, env=alone)
    plain = subprocess.run([*run, "decompress"], input=packed.stdout, stdout=subprocess.PIPE, check=True, env=alone)
    assert plain.stdout == b"data" * 9999
    # The guardian is a program of its own, and does not know of itself where the launcher found the code.
    words = ["receive", "--timeout", "1", f"unix://{prefix}/in", "--", "/bin/true"]
    waited = subprocess.run([*run, *words], capture_output=True, text=True, env=alone, timeout=60)
    assert waited.returncode == 5 and "no peer connected within 1 s" in waited.stderr, waited.stderr
    assert len(waited.stderr.splitlines()) == 2, waited.stderr

    assert make("uninstall", "", prefix).returncode == 0
    assert [path for path in prefix.rglob("*") if not path.is_dir()] == []


def test_only_what_is_known_by_its_hash_is_installed(tmp_path: Path) -> None:
    said = make("install", tmp_path, Path("/usr"), "--dry-run").stdout
    words = said.replace("\\\n", " ").splitlines()
    pip = [line for line in words if "pip install" in line]
    assert len(pip) == 1 and "--require-hashes" in pip[0] and "-r requirements.lock" in pip[0]
    assert "--only-binary :all:" in pip[0], "sources would run build tools that nobody has looked at"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs for others, and may hide a folder")
def test_a_python_of_one_user_alone_is_not_installed_for_all(tmp_path: Path) -> None:
    """The system's Python can make no venv here, root's own can: then the system's is brought to where it can."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "setup", tmp_path / "tools")
    for name, script in {
        "apt-get": f'echo "$@" >>{tmp_path}/asked; exit 1',
        "python3": f'exec {private(tmp_path)} "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "__init__.py").write_text("raise ImportError")
    hidden = subprocess.run(
        ["/usr/bin/python3", "-c", "import ensurepip; print(ensurepip.__path__[0])"], capture_output=True, text=True
    ).stdout.strip()
    script = 'mount --bind "$1" "$2" && exec tools/setup install' if hidden else "exec tools/setup install"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", tmp_path / "none", hidden],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "apt-get could not install python3 python3-venv" in done.stderr
    assert not (tmp_path / "build").exists()


def private(folder: Path) -> Path:
    """A Python below a folder that is closed to others."""
    (folder / "closed").mkdir(0o700)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "closed"], check=True)
    return folder / "closed" / "bin" / "python"


def test_the_venv_of_another_checkout_is_not_made_anew(tmp_path: Path) -> None:
    """A second checkout may borrow it by a link. Made for the second, it would be gone from the first."""
    other = tmp_path / "other"
    for folder in (other, tmp_path / "tools"):
        folder.mkdir()
    (other / "kept").touch()
    shutil.copy(ROOT / "tools" / "setup", tmp_path / "tools")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / ".venv").symlink_to(other)
    done = subprocess.run([tmp_path / "tools" / "setup"], capture_output=True, text=True)
    assert done.returncode == 1 and f"make .venv anew where it is: {other}" in done.stderr
    assert (other / "kept").exists()


def test_a_wheel_has_the_manual_and_its_types(tmp_path: Path) -> None:
    """pip puts it below its prefix, where man looks for what is beside bin/."""
    for name in ("statepipe", "man"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "dist", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and any(word in done.stderr for word in NETWORK):
        pytest.skip("the build's own requirements cannot be had from here")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    for page in ("man1/statepipe.1", "man1/statepipe-save.1", "man5/statepipe-state.5"):
        assert [name for name in names if name.endswith(f".data/data/share/man/{page}")]
    assert "statepipe/py.typed" in names


def test_a_package_for_debian_has_all_in_its_place_and_needs_no_more_than_it_says(tmp_path: Path) -> None:
    """That it installs, works and goes again is `make debtest`, in bare Debians."""
    tracked = subprocess.run(["git", "status", "--short"], cwd=ROOT, capture_output=True, text=True).stdout
    done = make("deb", "", Path("/usr"), "PYTHONS=", "DEB_OPTIONS=-Znone", f"DEB_FOLDER={tmp_path}")
    if done.returncode and any(word in done.stderr for word in NETWORK):
        pytest.skip("the packages of requirements.lock cannot be had from here")
    assert done.returncode == 0, done.stderr
    assert subprocess.run(["git", "status", "--short"], cwd=ROOT, capture_output=True, text=True).stdout == tracked
    [package] = tmp_path.glob("statepipe_*.deb")
    subprocess.run(["dpkg-deb", "--raw-extract", package, tmp_path / "root"], check=True)
    root, control = tmp_path / "root", (tmp_path / "root/DEBIAN/control").read_text()
    listed = subprocess.run(["dpkg-deb", "--contents", package], capture_output=True, text=True, check=True).stdout
    assert all(line.split()[1] == "root/root" for line in listed.splitlines())
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    pages = {f"usr/share/man/man{page.suffix[1:]}/{page.name}.gz" for page in (ROOT / "man").iterdir()}
    assert (
        len(pages) > 0
        and pages
        | {
            "usr/bin/statepipe",
            "usr/lib/statepipe/statepipe/py.typed",
            "usr/lib/systemd/system/statepipe-receive@.service",
            "usr/lib/systemd/system/statepipe-receive@.socket",
            "usr/lib/sysusers.d/statepipe.conf",
            "usr/lib/tmpfiles.d/statepipe.conf",
            "usr/share/bash-completion/completions/statepipe",
            "usr/share/zsh/site-functions/_statepipe",
            "usr/share/fish/vendor_completions.d/statepipe.fish",
            "usr/share/doc/statepipe/copyright",
            "usr/share/doc/statepipe/CHANGELOG.md.gz",
        }
        <= files
    )
    assert (root / "usr/bin/statepipe").read_text().startswith("#!/usr/bin/python3 -IS\n")
    assert not [name for name in files if "__pycache__" in name or str(tmp_path) in name]
    assert re.search(
        r"^Depends: python3 \(>= 3\.\d+\), python3 \(<< 3\.\d+~\), libc6 \(>= 2\.34\), libgcc-s1, libstdc\+\+6$",
        control,
        re.M,
    )
    libraries = [root / name for name in files if name.endswith(".so") or ".so." in name]
    read = subprocess.run(["readelf", "-dW", *libraries], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.*?)(?:\.so[.0-9]*)\]", read))
    needed -= {path.name.partition(".so")[0] for path in libraries}  # a wheel may bring a library of its own
    assert needed <= {"libc", "libm", "libdl", "libpthread", "librt", "libgcc_s", "libstdc++", "ld-linux-x86-64"}
    for script in ("postinst", "prerm", "postrm"):
        assert os.access(root / "DEBIAN" / script, os.X_OK)
        subprocess.run(["sh", "-n", root / "DEBIAN" / script], check=True)
