"""Prints the process of a pool of one, and kills itself."""

import os
import signal

from data.pipeline.fork_server import worker_pool

if __name__ == "__main__":
    with worker_pool(1) as pool:
        print(pool.submit(os.getpid).result(60), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
