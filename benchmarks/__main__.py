"""``python -m benchmarks`` and one of `COMMANDS`, each a module of this folder."""

import sys
from importlib import import_module

COMMANDS = (
    "run",
    "transfer",
    "peaks",
    "refusals",
    "volumes",
    "study",
    "explain",
    "ceiling",
    "speed",
    "paired",
    "engines",
    "archive",
    "size",
    "tables",
)

if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m benchmarks {{{','.join(COMMANDS)}}} --help")
    import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
