"""The fault campaign: real beats, workers and servers that are killed, stopped and cut off.

``python -m tests.chaos`` runs it and prints what it did and what came of it. The faults are drawn
from a seed. The app leaves effects in a table without any constraint, and its bodies leave lines in
files; the verdict is computed from these and from the ledger's tables, and from the grid of slots,
which is arithmetic alone.
"""
