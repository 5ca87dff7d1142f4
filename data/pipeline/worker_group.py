"""Imported first by the fork server of the loader workers, and by nothing else.

A launcher signals the whole process group of a rank, and a terminal that of the program. Workers that died before the
rank has saved its state would take it along; the server and the workers it forks therefore form a group of their own.
The rank blocked the signals while it started the server.
"""

import os
import signal

os.setpgid(0, 0)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
