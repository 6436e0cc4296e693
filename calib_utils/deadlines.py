"""HTTP connections that are cut at a deadline, however slowly or endlessly the other side talks.

Knows sockets and the Retry-After header. A socket's own time limit starts anew with every byte.
"""

import socket
import threading
import time
import urllib.request
from contextlib import suppress
from email.utils import parsedate_to_datetime


class CutOff(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens URLs over connections that are shut after some time, unless `cancel` comes first.

    Args:
        seconds: from now on.

    Attributes:
        over: whether the time is over, known before any connection is shut. The end of what one
            sent then looks like the end of an answer, and no clock of the reader's can tell.
    """

    def __init__(self, seconds: float):
        super().__init__()
        self.over = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Ends the watch."""
        self._timer.cancel()

    def do_open(self, http_class, request, **options):
        """As in urllib, over a connection that is watched."""

        def watched(*args, **settings):
            connection = http_class(*args, **settings)
            connect = connection.connect

            def connect_and_watch():
                connect()
                self._sockets.append(connection.sock)
                if self.over:  # before this connection was there to be shut
                    raise TimeoutError

            connection.connect = connect_and_watch
            return connection

        return super().do_open(watched, request, **options)

    def _shut(self) -> None:
        self.over = True
        for one in self._sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def retry_after(header: str | None) -> float | None:
    """Seconds from a Retry-After header, in either of its forms; None if there is none to read."""
    if header is None:
        return None
    try:
        if header.strip().isdecimal():
            return float(header)
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
