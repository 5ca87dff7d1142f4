"""Moves the fork server of the loader workers to a separate process group; its first import, and imported nowhere else.

Launchers and terminals signal the whole process group. They must not kill the workers while the rank is saving its
state, so the server and its workers form a separate group. The rank blocked the signals while it started the server.
Schedulers signal every process of a job: signals that the rank handles are ignored here. SIGTERM stays blocked instead,
since the rank uses it to end workers (see `exit_with_program`).
"""

import os
import signal

from utils.distributed.signals import HANDLED
from utils.imports import begin_imports

os.setpgid(0, 0)
begin_imports()  # the last of them is server_ready.py
for each in HANDLED - {signal.SIGTERM}:
    signal.signal(each, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED - {signal.SIGTERM})
