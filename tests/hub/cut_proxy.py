"""A TCP proxy that loses connections in the middle of an upload."""

import socket
import threading
from urllib.parse import urlsplit


class CutProxy:
    """Passes bytes on to a server; the first `cuts` commits are cut off after their first piece.

    Args:
        endpoint (`str`): The server, `http://127.0.0.1:port`.
        cuts (`int`): How many commits lose their connection.
    """

    def __init__(self, endpoint: str, cuts: int):
        self.target = ("127.0.0.1", urlsplit(endpoint).port)
        self.cuts = cuts
        self.cut = 0

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
            for source, sink, watched in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=(source, sink, watched), daemon=True).start()

    def _pass_on(self, source, sink, watched):
        try:
            while data := source.recv(1 << 16):
                if watched and self.cut < self.cuts and b"POST" in data and b"/commit/" in data:
                    self.cut += 1
                    sink.sendall(data[: len(data) // 2])
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()
