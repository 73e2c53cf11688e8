"""The verb tunnel: QEMU's own connections, and with --libvirt those of a migration by virsh."""

from __future__ import annotations

from statepipe.cli.messages import show
from statepipe.cli.migration import saying, status_listeners
from statepipe.cli.network import plan_of
from statepipe.cli.verb import Values
from statepipe.cli.verbs import find_verb
from statepipe.errors import UsageError


def run_tunnel(name: str, values: Values) -> int:
    """Carry connections from here to there."""
    return _run_libvirt(name, values) if values["libvirt"] else _run_plain(name, values)


def _run_plain(name: str, values: Values) -> int:
    from statepipe.tunnel.tunnel import STDIO, TunnelRequest, run_tunnel

    if values["go"] is None:
        hint = "here: statepipe tunnel unix:///PATH tls://HOST:PORT; there: statepipe tunnel tls://:PORT unix:///PATH"
        raise UsageError("a tunnel needs two addresses, FROM and TO", hint=hint)
    inside = values["come"] == STDIO
    texts = ["ssh://there" if inside else values["come"], values["go"]]
    bare = values | {param.key: None for param in find_verb(name).params if param.only}  # options of the other address
    come, go = (plan_of(name, text, [], bare if text.startswith("unix:") else values, None) for text in texts)
    ways = [("unix", "tls"), ("unix", "ssh"), ("ssh" if inside else "tls", "unix")]
    if (come.address.scheme, go.address.scheme) not in ways:
        hint = "here: statepipe tunnel unix:///PATH tls://HOST:PORT; there: statepipe tunnel tls://:PORT unix:///PATH"
        raise UsageError("a tunnel leads from unix:// to tls:// or ssh://, or from tls:// to unix://", hint=hint)
    if go.address.scheme == "ssh" and go.address.path in ("", "/"):
        raise UsageError(f"'{go.address}' names no socket", hint="write ssh://HOST/PATH, with the socket's path there")
    if come.address.scheme == "tls":
        _refuse_also(values)
    status_listeners(values)
    run_tunnel(TunnelRequest(come, go, once=values["once"] or inside), saying(name))
    return 0


def _refuse_also(values: Values) -> None:
    if values["also"]:
        raise UsageError(
            "--also HOST is for the tunnel that connects, not for the one that listens", hint="leave it out"
        )


def _run_libvirt(name: str, values: Values) -> int:
    from statepipe.tunnel.libvirt import LibvirtRequest, run_libvirt_tunnel
    from statepipe.tunnel.libvirthost import check_domain
    from statepipe.tunnel.tunnel import STDIO

    hint = "here: statepipe tunnel --libvirt --domain NAME ssh://root@HOST; or tls://HOST, and there tls://:PORT"
    inside, domain = values["come"] == STDIO, values["domain"]
    if values["go"] is not None:
        raise UsageError("with --libvirt, a tunnel takes one address, that of the other host", hint=hint)
    plan = plan_of(name, "ssh://there" if inside else values["come"], [], values, None)
    scheme, path = plan.address.scheme, plan.address.path
    if scheme not in ("tls", "ssh") or path not in ("", "/"):
        raise UsageError(f"a tunnel --libvirt does not lead to '{values['come']}'", hint=hint)
    if domain is None and scheme == "ssh" and not inside:
        raise UsageError("a tunnel --libvirt needs the name of the guest", hint="give --domain NAME")
    if domain is None:
        _refuse_also(values)
    else:
        check_domain(domain)
        if values["libvirtd"] is not None and scheme == "tls":
            raise UsageError(
                "--libvirtd SOCKET is for the host where the guest goes", hint="give it to the tunnel there"
            )
    status_listeners(values)
    request = LibvirtRequest(plan, domain, values["folder"], values["libvirtd"], once=values["once"])
    run_libvirt_tunnel(request, saying(name), show)
    return 0
