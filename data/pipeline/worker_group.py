"""Moves the fork server of the loader workers to a separate process group; imported first by it, and by nothing else.

Launchers and terminals signal the whole process group. They must not kill the workers while the rank is saving its
state, so the server and its workers form a separate group. The rank blocked the signals while it started the server.
"""

import os
import signal

os.setpgid(0, 0)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
