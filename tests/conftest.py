"""What all tests need of the process they run in."""

from __future__ import annotations

import signal

# Started in the background of a script they would ignore Ctrl-C, as would the commands they run.
signal.signal(signal.SIGINT, signal.default_int_handler)
