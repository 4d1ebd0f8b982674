"""Parent of one party's process, run as a plain script: ``python -I -S guard.py ENGINE_PID COMMAND...``.

It is the leader of the party's process group. It waits for the command and ends as the command ended
(same exit code or signal). If the engine is gone - even by kill -9 - it kills the whole group, FATE's
process pools included; if this guard is killed, the kernel kills the command (Linux). Standard library only.
"""

import ctypes
import os
import resource
import signal
import sys
from types import FrameType
from typing import List, Optional

POLL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1


def main(argv: List[str]) -> int:
    """Run ``argv[2:]`` on behalf of the process ``argv[1]``."""
    engine = int(argv[1])

    def look(_signal: int, _frame: Optional[FrameType]) -> None:
        if os.getppid() != engine:
            os.killpg(os.getpgid(0), signal.SIGKILL)

    signal.signal(signal.SIGTERM, lambda *_: None)  # meant for the command; the engine decides about the rest
    signal.signal(signal.SIGALRM, look)
    child = os.fork()
    if child == 0:
        _run(argv[2:])
    signal.setitimer(signal.ITIMER_REAL, POLL_SECONDS, POLL_SECONDS)
    _, status = os.waitpid(child, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if not os.WIFSIGNALED(status):
        return os.WEXITSTATUS(status)
    return _die_like(os.WTERMSIG(status))


def _run(command: List[str]) -> None:
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot start {command[0]}: {error}\n".encode())
        os._exit(127)


def _die_like(number: int) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number


if __name__ == "__main__":
    sys.exit(main(sys.argv))
