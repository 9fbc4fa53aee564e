"""A TCP proxy that loses connections in the middle of an upload."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class CutProxy:
    """Passes bytes on to a server, and loses the connection of some requests.

    Args:
        endpoint (`str`): The server, `http://127.0.0.1:port`.
        cuts (`list[tuple[str, str]]`): What is lost, one after the other: of the next `"commit"` or `"file"` half
            of the `"request"`, or the `"answer"`, after the server has done what was asked.
    """

    def __init__(self, endpoint: str, cuts: list[tuple[str, str]]):
        self.target = ("127.0.0.1", urlsplit(endpoint).port)
        self.cuts = list(cuts)

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            lost = threading.Event()
            for arguments in ((client, server, lost, True), (server, client, lost, False)):
                threading.Thread(target=self._pass_on, args=arguments, daemon=True).start()

    def _pass_on(self, source, sink, lost, to_server):
        try:
            while data := source.recv(1 << 16):
                if to_server and self.cuts and _is(data, self.cuts[0][0]):
                    if self.cuts.pop(0)[1] == "request":
                        sink.sendall(data[: len(data) // 2])
                        break
                    lost.set()
                elif not to_server and lost.is_set():
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # `close` alone tells nobody while the other thread waits for bytes
            end.close()


def _is(data, kind):
    first_line = data.partition(b"\r\n")[0]
    return (
        first_line.startswith(b"PUT /_lfs/") if kind == "file" else b"POST" in first_line and b"/commit/" in first_line
    )
