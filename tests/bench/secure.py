"""Rows on carrying a stream over the loopback under encryption, both sides authenticated, beside what people use.

Ours is the session: it has a digest and acknowledgements on top of TLS, and its verdict is of both ends.
"""

from __future__ import annotations

import getpass
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.data import STATEPIPE, Inputs
from tests.bench.measure import Broken, Job
from tests.bench.network import free_port, is_there, job, ours
from tests.bench.pairs import Bench, pair
from tests.bench.table import Row
from tests.net.distance import ADDRESSES
from tests.sshd import SSHD, sshd


def tls_network(bench: Bench) -> list[Row]:
    """Each peer that is installed."""
    creds = make_creds(bench.inputs.folder)
    mine = ours(bench.inputs, "tls", "--tls-creds", str(creds))
    rows = []
    if is_there("socat"):
        rows.append(pair(bench, WHAT, mine, socat(bench.inputs, creds), 1.1))
    if is_there("stunnel4") and is_there("nc"):
        rows.append(pair(bench, WHAT, mine, stunnel(bench.inputs, creds), 1.1))
    if is_there("ssh") and SSHD:
        with ssh(bench.inputs) as peer:
            rows.append(pair(bench, WHAT, mine, peer, 1.3))
    return rows


WHAT = "send and recv, tls"


def socat(inputs: Inputs, creds: Path) -> Job:
    """socat's OPENSSL at both ends, both authenticated."""
    port = free_port()
    trust = f"cafile={creds}/ca-cert.pem,openssl-min-proto-version=TLS1.3"
    server = f"cert={creds}/server-cert.pem,key={creds}/server-key.pem,verify=1"
    client = f"cert={creds}/client-cert.pem,key={creds}/client-key.pem,pf=ip4"
    receiver = ["socat", "-u", "-b", "262144", f"OPENSSL-LISTEN:{port},bind=127.0.0.1,reuseaddr,{trust},{server}", "-"]
    sender = ["socat", "-u", "-b", "262144", "-", f"OPENSSL:localhost:{port},{trust},{client}"]
    return job("socat OPENSSL", inputs, receiver, sender)


def make_creds(folder: Path) -> Path:
    """Certificates for this host. Raises Broken."""
    creds = folder / "creds"
    if not creds.exists():
        _statepipe("pki", "init", "--ca", str(folder / "ca"))
        _statepipe(
            "pki", "issue", "localhost", "127.0.0.1", *ADDRESSES, "--ca", str(folder / "ca"), "--dir", str(creds)
        )
    return creds


def _statepipe(*words: str) -> None:
    done = subprocess.run([*STATEPIPE, *words], capture_output=True, text=True)
    if done.returncode:
        raise Broken(f"'{shlex.join(words)}': {done.stderr.strip()}")


MEET_STUNNEL = (
    "stunnel4 $1/server.conf 2>/dev/null & s=$!; until nc -z 127.0.0.1 $2; do kill -0 $s || exit 1; done; "
    "stunnel4 $1/client.conf 2>/dev/null; status=$?; kill $s; wait $s; exit $status"
)
"""As network.MEET; but a receiver that does not end by itself, and a sender that ends with 0 where it finds nobody."""


def stunnel(inputs: Inputs, creds: Path) -> Job:
    """stunnel at both ends: a filter here, a `cat` behind it there."""
    folder, port = inputs.folder / "stunnel", free_port()
    folder.mkdir(exist_ok=True)
    sink = folder / "sink"
    sink.write_text("#!/bin/sh\nexec cat >/dev/null\n")
    sink.chmod(0o755)
    ends = {
        "server": f"[it]\naccept = 127.0.0.1:{port}\nexec = {sink}\n",
        "client": f"client = yes\nconnect = 127.0.0.1:{port}\n",
    }
    for side, end in ends.items():
        keys = f"cert = {creds}/{side}-cert.pem\nkey = {creds}/{side}-key.pem\nCAfile = {creds}/ca-cert.pem\n"
        (folder / f"{side}.conf").write_text(
            f"foreground = yes\npid =\nsslVersion = TLSv1.3\nverifyChain = yes\n{keys}{end}"
        )
    return Job("stunnel", ("sh", "-c", MEET_STUNNEL, "sh", str(folder), port), inputs.size, inputs.plain)


@contextmanager
def ssh(inputs: Inputs) -> Iterator[Job]:
    """ssh into a `cat`, with the quickest of its ciphers. Its CPU seconds are those of its own half: sshd's are not."""
    with tempfile.TemporaryDirectory(prefix="statepipe-bench-") as folder, sshd(Path(folder)) as host:
        options = ["-F", f"{folder}/user.config", "-p", str(host.port), "-c", "aes128-gcm@openssh.com"]
        command = ("ssh", *options, f"{getpass.getuser()}@127.0.0.1", "cat >/dev/null")
        yield Job("ssh, aes128-gcm", command, inputs.size, inputs.plain)
