"""The command line: ``waferc compile | check | view | run | estimate | size | compare | models | targets | schema``.

This module is imported at every start, so it imports nothing heavy: each command imports what it needs.
"""

from partitioner.cli.app import main

__all__ = ["main"]
