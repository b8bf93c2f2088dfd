"""A test that hangs says where, in every thread, and ends its process.

The kernel keeps the time, and what it calls is written in C: a test that hangs in C, with the
interpreter's lock, is ended too. A thread for each test would do the same, and takes milliseconds
to start and to end, of which the suite has 14,000.
"""

import faulthandler
import signal

__all__ = ["end_after", "watch"]


def watch(descriptor: int) -> None:
    """Tracebacks go to the file of this descriptor; after them SIGALRM does what it always does."""
    faulthandler.register(signal.SIGALRM, file=descriptor, all_threads=True, chain=True)


def end_after(seconds: float) -> None:
    """End this process in so many seconds; 0 never, and forgets what was said before."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
