"""Lower the bundled models and write down their profiles, which forecasts then read in place of lowering.

    python benchmarks/profiles.py [NAME ...]

Without names, all bundled models. Each takes some ten seconds; ``tests/test_profiles.py`` tells when one is stale.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from partitioner.frontends import catalog
from partitioner.profiles import bundle

FOLDER = Path(catalog.__file__).parent / "models" / "profiles"


def main(names: list[str]) -> None:
    """Write a file for each model."""
    FOLDER.mkdir(exist_ok=True)
    for name in names or sorted(catalog.catalog()):
        begin = time.perf_counter()
        data = bundle(name)
        if data is None:
            sys.exit(f"there is no bundled model {name}")
        FOLDER.joinpath(f"{name}.json").write_bytes(data)
        print(f"{name}: {len(data):,} bytes, {time.perf_counter() - begin:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
