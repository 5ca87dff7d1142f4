"""Moves the fork server of the loader workers to a separate process group; imported first by it, and by nothing else.

Launchers and terminals signal the whole process group. They must not kill the workers while the rank is saving its
state, so the server and its workers form a separate group. The rank blocked the signals while it started the server.
Schedulers signal every process of a job: what the rank handles is ignored here. SIGTERM stays blocked instead, since
the rank ends workers by it (see `exit_with_program`).
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
