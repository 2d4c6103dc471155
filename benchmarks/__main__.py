"""``python -m benchmarks run …``, ``… transfer …``, ``… peaks …``, ``… refusals …``,
``… ceiling …`` and ``… speed …``."""

import sys

from benchmarks import ceiling, peaks, refusals, run, speed, transfer

COMMANDS = {
    "run": run.main,
    "transfer": transfer.main,
    "peaks": peaks.main,
    "refusals": refusals.main,
    "ceiling": ceiling.main,
    "speed": speed.main,
}

if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m benchmarks {{{','.join(COMMANDS)}}} --help")
    COMMANDS[sys.argv[1]](sys.argv[2:])
