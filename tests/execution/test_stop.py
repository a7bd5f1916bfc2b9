from __future__ import annotations

import os
import signal

import pytest

from rlrt.execution.stop import StopFlag


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_is_a_request_and_only_ctrl_c_insists(number):
    before = signal.getsignal(number)
    with StopFlag() as stop:
        assert not stop.requested()
        os.kill(os.getpid(), number)
        assert stop.requested()
        assert stop.signal == number
        os.kill(os.getpid(), signal.SIGTERM)  # SLURM at the limit itself: no reason to tear a checkpoint
        assert stop.signal == number
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) == before
