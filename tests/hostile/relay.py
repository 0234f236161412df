"""A man in the middle: takes connections, dials the real end, passes everything on, and keeps a copy.

usage: relay.py [--uid UID] [--cert PEM --key PEM] LISTEN TARGET COPY

LISTEN and TARGET are HOST,PORT or a path; with a certificate TLS is spoken on both sides. Says `ready PORT` when it
listens. COPY.client and COPY.server hold what either side has said. With --uid it becomes that user first, as a
program of another user of the machine would be.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import ssl
import sys

LONGEST = 60.0


def family(place: str) -> int:
    """Return the address family of HOST,PORT or a path."""
    return socket.AF_UNIX if "/" in place else socket.AF_INET6 if ":" in place else socket.AF_INET


def parts(place: str) -> str | tuple[str, int]:
    """Return what a socket takes for HOST,PORT or a path."""
    host, _, port = place.partition(",")
    return place if "/" in place else (host, int(port))


def listen(place: str) -> socket.socket:
    """Return a listening socket; one on IPv6 leaves IPv4 to others."""
    listener = socket.socket(family(place))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family(place) == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(parts(place))
    listener.listen()
    return listener


def dial(place: str, secure: bool) -> socket.socket:
    """Return a connection to the real end."""
    sock = socket.socket(family(place))
    sock.settimeout(LONGEST)
    sock.connect(parts(place))
    if not secure:
        return sock
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["sockstream/1"])
    return context.wrap_socket(sock)


def pass_on(client: socket.socket, server: socket.socket, copy: str) -> None:
    """Pass bytes both ways until either side ends."""
    selector = selectors.DefaultSelector()
    selector.register(client, selectors.EVENT_READ, (server, f"{copy}.client"))
    selector.register(server, selectors.EVENT_READ, (client, f"{copy}.server"))
    while ready := selector.select(LONGEST):
        for key, _ in ready:
            assert isinstance(key.fileobj, socket.socket)
            other, path = key.data
            data = key.fileobj.recv(1 << 16)  # a whole record of TLS fits, so none is left behind
            if not data:
                return
            with open(path, "ab") as file:
                file.write(data)
            other.sendall(data)


def main() -> None:
    """Stand in the middle until killed."""
    parser = argparse.ArgumentParser()
    for name in ("--uid", "--cert", "--key", "listen", "target", "copy"):
        parser.add_argument(name)
    args = parser.parse_args()
    context = None
    if args.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(args.cert, args.key)
        context.set_alpn_protocols(["sockstream/1"])
    if args.uid:
        os.setgid(int(args.uid))
        os.setuid(int(args.uid))
    listener = listen(args.listen)
    name = listener.getsockname()
    print("ready", name if isinstance(name, str) else name[1], flush=True)
    while True:
        sock, _ = listener.accept()
        sock.settimeout(LONGEST)
        with contextlib.suppress(OSError), contextlib.ExitStack() as open_sockets:
            client = open_sockets.enter_context(context.wrap_socket(sock, server_side=True) if context else sock)
            server = open_sockets.enter_context(dial(args.target, bool(args.cert)))
            pass_on(client, server, args.copy)


if __name__ == "__main__":
    sys.exit(main())
