"""Run the searches by hand: ``python -m tests.model [--deep] [--mutations] [NAME ...]``.

Without names all of them; ``--deep`` those with fewer things left out, which take minutes each.
Prints the number of worlds and steps, and the history of a promise that is broken.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.model.alphabets import ALPHABETS, DEEP
from tests.model.histories import Found
from tests.model.mutations import MUTATIONS
from tests.model.search import search


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--deep", action="store_true")
    parser.add_argument("--mutations", action="store_true")
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if options.mutations:
        for name, key, _, ledger, rules in MUTATIONS:
            if not options.names or name in options.names:
                _show(f"without {name}, {key}", search(ALPHABETS[key], ledger, rules), 0.0)
        return 0
    broken = 0
    for alphabet in DEEP if options.deep else ALPHABETS.values():
        if options.names and alphabet.name not in options.names:
            continue
        started = time.process_time()
        found = search(alphabet)
        _show(alphabet.name, found, time.process_time() - started)
        broken += found.broken is not None
    return 1 if broken else 0


def _show(name: str, found: Found, seconds: float) -> None:
    print(f"{name}: {found.worlds} worlds, {found.steps} steps, {seconds:.1f} s", flush=True)
    for label in found.history:
        print(f"    {label}")


if __name__ == "__main__":
    sys.exit(main())
