"""The verbs between hosts, declared as those of verbs.py are."""

from __future__ import annotations

from statepipe.cli.verb import AS_JSON, Param, Verb

ON_TIMEOUT = ("cancel", "suspend")

_INSECURE = Param("--insecure", "allow plain TCP beyond this host: anyone on the way can read and change it")
_CREDS = Param(
    "--tls-creds", "with tls://: certificates, and whom to believe, as QEMU's tls-creds-x509 has them", "DIR"
)
_PEER = Param(
    "--peer",
    "with tls://: the peer that is meant, by its pin or a name in its certificate; for send the host's by default",
    "NAME",
)
_TIMEOUT = Param("--timeout", "give up when the peer is silent for so many seconds; the default is never", "SECONDS")
_STATUS_FD = Param("--status-fd", "tell each step, and how far it is each second, in JSON, to descriptor N", "N")
_JOURNAL = Param("--journal", "write each step down in FILE, which must not be there yet, before it is taken", "FILE")
_LINKS = Param("--links", "with tls:// and ssh://: connections at once, 1 to 16; the default is one an address", "N")
_ALSO = Param("--also", "with tls://: one more address of the same host, HOST or HOST:PORT", "HOST", many="any")
_RETRY = Param("--retry", "with tls://: go on for so many seconds without network; the default is 30", "SECONDS")
_SSH = Param("--ssh", "with ssh://: the command that is ssh, with its options; the default is ssh", "COMMAND")
_REMOTE = Param("--remote-command", "with ssh://: what starts statepipe there; the default is statepipe", "COMMAND")
_REMOTE_QEMU = Param(
    "--remote-qemu",
    "with ssh://: start the QEMU command line in FILE there; the default is this QEMU's own, if it has your rights",
    "FILE",
)
_INSIDE = Param("--session-stdio", "what ssh:// starts there: standard input and output are the first connection")
_MONITOR = Param("--qmp", "the guest's QEMU, whose monitor listens on the unix socket SOCKET", "SOCKET")

BETWEEN_HOSTS = (
    Verb(
        "send",
        "send standard input to ADDRESS, and end as the receiver does",
        (
            Param("words", "stages on the way: compress:zstd:3, checksum, progress", "WORD", many="any"),
            Param(
                "address", "tls://HOST:PORT, or HOST alone; ssh://HOST/PATH; tcp://HOST:PORT; unix:///PATH", "ADDRESS"
            ),
            _CREDS,
            _PEER,
            _INSECURE,
            _TIMEOUT,
            Param(
                "--retry",
                "where nobody listens yet, try again so long; with tls:// and ssh://, go on so long without network",
                "SECONDS",
            ),
            _LINKS,
            _ALSO,
            Param("--bind", "connect from this address of ours", "HOST"),
            _SSH,
            _REMOTE,
        ),
        "statepipe.cli.network:run_send",
    ),
    Verb(
        "recv",
        "receive one stream at ADDRESS, to standard output or into a file",
        (
            Param(
                "address",
                "tls://:PORT, tls://HOST:PORT, the same with tcp://, or unix:///PATH",
                "ADDRESS",
                many="optional",
            ),
            Param("words", "stages on the way: decompress, checksum, progress", "WORD", many="any"),
            Param(
                "--output", "a file, which exists only once the stream is there whole", "FILE", short="-o", dash=True
            ),
            _CREDS,
            _PEER,
            _INSECURE,
            _TIMEOUT,
            Param("--retry", "with tls://: wait so many seconds for a sender whose connection broke", "SECONDS"),
            Param("--allow-empty", "with tcp:// and unix://: who connects and sends nothing sends an empty stream"),
            _INSIDE,
            Param("--attach", "what ssh:// starts again: one more connection for the receiver ID", "ID"),
        ),
        "statepipe.cli.network:run_recv",
    ),
    Verb(
        "migrate",
        "move a running guest to another host, in two phases: it runs there, or on here",
        (
            Param("words", "stages on the way: zstd:auto, throttle:100M, checksum", "WORD", many="any"),
            Param(
                "uri",
                "where statepipe receive waits: tls://HOST:PORT, HOST, unix:///PATH; ssh://USER@HOST starts it there; "
                "a QEMU that waits: tcp://HOST:PORT, unix:///PATH; a program: exec:COMMAND; a state: file:///PATH",
                "URI",
            ),
            _MONITOR,
            Param("--detach", "return once the guest's memory is on its way, and go on in the background", short="-d"),
            Param("--offline", "stop the guest first; it goes on over there"),
            Param("--downtime-limit", "milliseconds that the guest may stand still at the end; QEMU's is 300", "MS"),
            Param("--rate", "bytes a second that QEMU may send, as in 200M; the default is no limit", "RATE"),
            Param("--auto-converge", "slow the guest down if its memory changes faster than it is sent"),
            Param("--timeout", "seconds that the guest's memory may take", "SECONDS"),
            Param("--on-timeout", "what then: cancel (default), or suspend the guest", "WHAT", choices=ON_TIMEOUT),
            Param(
                "--switchover-timeout",
                "seconds that the guest may wait, standing still, for the other host to have it; default 10, 0: no end",
                "SECONDS",
            ),
            Param("--quit-source", "end QEMU here once the guest runs there"),
            Param("--force", "move although the comparison of the hosts fails"),
            _JOURNAL,
            _STATUS_FD,
            _CREDS,
            _PEER,
            _RETRY,
            _LINKS,
            _ALSO,
            _INSECURE,
            Param("--bind", "connect from this address of ours", "HOST"),
            _SSH,
            _REMOTE,
            _REMOTE_QEMU,
        ),
        "statepipe.cli.migration:run_migrate",
    ),
    Verb(
        "receive",
        "take a guest that migrate gives away, into a QEMU that is started for it or one that waits",
        (
            Param(
                "address",
                "tls://:PORT or tls://HOST:PORT; on one host unix:///PATH",
                "ADDRESS",
                many="optional",
            ),
            Param("command", "after --: the QEMU command line that the guest was started with", "QEMU", many="any"),
            Param("--qmp", "the QEMU that waits with -incoming defer: its monitor's unix socket", "SOCKET"),
            Param("--detach", "return once the guest runs, and leave QEMU to itself"),
            Param("--chdir", "start QEMU in this folder", "DIR"),
            _INSIDE,
            Param("--serve", "take one guest after the other, at most N at a time", "N"),
            _JOURNAL,
            _STATUS_FD,
            _CREDS,
            _PEER,
            Param("--timeout", "give up when nobody came for so many seconds; the default is never", "SECONDS"),
            _RETRY,
        ),
        "statepipe.cli.migration:run_receive",
    ),
    Verb(
        "check",
        "say whether a guest would get to another host, before anything moves",
        (
            Param("uri", "as for migrate: tls://HOST:PORT, or HOST; unix:///PATH; ssh://USER@HOST", "URI"),
            _MONITOR,
            AS_JSON,
            Param("--timeout", "give up after so many seconds", "SECONDS"),
            _CREDS,
            _PEER,
            Param("--bind", "connect from this address of ours", "HOST"),
            _SSH,
            _REMOTE,
            _REMOTE_QEMU,
        ),
        "statepipe.cli.migration:run_check",
    ),
    Verb(
        "tunnel",
        "carry QEMU's own connections to another host, through sessions that outlive their links",
        (
            Param("come", "where connections come in: unix:///PATH here, tls://:PORT on the other host", "FROM"),
            Param("go", "where they go on to: tls://HOST:PORT or ssh://HOST/PATH here, unix:///PATH there", "TO"),
            Param("--once", "end when all connections that have come have ended"),
            Param("--status-fd", "tell how far it is each second, in JSON, to descriptor N", "N"),
            _CREDS,
            _PEER,
            _RETRY,
            _LINKS,
            _ALSO,
            _SSH,
            _REMOTE,
        ),
        "statepipe.cli.migration:run_tunnel",
    ),
    Verb(
        "resolve",
        "say where a guest is whose migration broke off, and have it run here or not",
        (
            Param(
                "where",
                "here: it runs nowhere else, so have it run here; elsewhere: it runs on the other host, end this QEMU",
                "WHERE",
                many="optional",
                choices=("here", "elsewhere"),
            ),
            _MONITOR,
            Param("--journal", "what migrate or receive wrote down", "FILE"),
        ),
        "statepipe.cli.migration:run_resolve",
    ),
    Verb(
        "pair",
        "let two hosts know each other's keys, by a code that is carried from one to the other",
        (
            Param("address", "the host that listens: HOST or HOST:PORT", "ADDRESS", many="optional"),
            Param("--listen", "wait for the other host, and show the code"),
            Param("--name", "pin the other host under this name; the default is what it is called", "NAME"),
            Param("--code-file", "read the code from FILE (as /dev/fd/N, a descriptor), with nobody to ask", "FILE"),
            Param("--list", "print the peers that are pinned here, a line each: the name and its key's fingerprint"),
            Param("--remove", "take the pin of the peer NAME away, and say which key it was", "NAME"),
        ),
        "statepipe.cli.pair:run_pair",
    ),
    Verb(
        "pki",
        "make certificates for hosts, in folders that QEMU, libvirt and statepipe all load",
        (
            Param("action", "init, issue, revoke or show", "ACTION", choices=("init", "issue", "revoke", "show")),
            Param("names", "init: the authority's name; issue, revoke: hosts' names, addresses", "NAME", many="any"),
            Param("--ca", "the authority's folder; the default is ca among statepipe's settings", "CA"),
            Param("--dir", "issue: the host's new folder; revoke: put the list there too; show: look there", "DIR"),
            Param("--for", "issue for one end only: server or client", "USE", choices=("server", "client")),
            Param("--days", "how long it is good; the default is 3650 for init, 397 for issue", "DAYS"),
            AS_JSON,
        ),
        "statepipe.cli.pki:run_pki",
    ),
)
