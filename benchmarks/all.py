"""`make bench`: reading, retrieval and harness, one table, printed and kept in results/.   --small: a first look"""

from __future__ import annotations

import sys

import harness
import reading
import retrieval
from table import print_table

SMALL = {reading: ["--gigabytes", "0.5"], retrieval: ["--texts", "600", "--vectors", "60000"], harness: ["--small"]}

if __name__ == "__main__":
    is_small = "--small" in sys.argv[1:]
    rows = [row for part, options in SMALL.items() for row in part.main(options if is_small else [])]
    print()
    print_table("all", rows)
