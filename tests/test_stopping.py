import os
import signal
import threading

import pytest

from raft_diffusion.stopping import SAID, SIGNALS, Stop


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_lets_the_batch_end_and_says_so(number, capfd):
    stop, seen = Stop(), []
    told = stop.checked(lambda *event: seen.append(event))
    with stop.gently():
        told("sample", 1, 3)
        os.kill(os.getpid(), number)
        seen.append("the batch goes on")
        with pytest.raises(KeyboardInterrupt):
            told("sample", 2, 3)
    assert seen == [("sample", 1, 3), "the batch goes on", ("sample", 2, 3)]
    assert capfd.readouterr().err == SAID


def test_the_second_one_stops_at_once():
    stop = Stop()
    with stop.gently():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_afterwards_the_signals_do_what_they_did():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Stop().gently():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_another_thread_leaves_them_alone():
    before, found = signal.getsignal(signal.SIGINT), []

    def work():
        with Stop().gently():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]
