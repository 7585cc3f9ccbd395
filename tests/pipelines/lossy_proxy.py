"""A network in front of a server that can be made to fail: refused connections, and answers lost on their way.

A lost answer is the nasty case: the server has done what was asked, and the client cannot know.
"""

from __future__ import annotations

import contextlib
import socket
import threading


class LossyProxy:
    """Forwards TCP connections on `port` (loopback) to `target`, as long as it is told to."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.away = False  # refuse everything
        self.lose: set[bytes] = set()  # the answer to the next request that contains one of these is lost
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop accepting connections."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        lost = threading.Event()
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self.target)) as server:
            back = threading.Thread(target=self._answer, args=(client, server, lost), daemon=True)
            back.start()
            while not self.away and (data := client.recv(1 << 16)):
                for asked in [asked for asked in self.lose if asked in data]:
                    self.lose.discard(asked)
                    lost.set()
                server.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
            server.shutdown(socket.SHUT_RDWR)

    def _answer(self, client: socket.socket, server: socket.socket, lost: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while (data := server.recv(1 << 16)) and not self.away and not lost.is_set():
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
