"""waferc: partition neural networks over clusters of wafer-scale machines.

import waferc

placed = waferc.compile(module, (example,), target="mini", systems=2)
placed.save("out/mine")
(result,) = placed.run(example)
"""

from ir.diagnostics import WafercError
from partitioner.api import CompiledModel, compile  # noqa: A004 - waferc.compile is the name that users expect

__all__ = ["CompiledModel", "WafercError", "compile"]
