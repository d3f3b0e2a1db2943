"""waferc: partition neural networks over clusters of wafer-scale machines.

import waferc

placed = waferc.compile(module, (example,), target="mini", systems=2)
placed.save("out/mine")
(result,) = placed.run(example)
assert placed.verify(inputs={"x": example}).ok
assert waferc.open_plan("out/kimi").verify(tokens=4).ok
speed = waferc.estimate("kimi-k2.6", target="cs3", users=8).tokens_per_s_per_user
"""

from ir.diagnostics import WafercError
from ir.forecast import Forecast
from partitioner.api import CompiledModel, compile, estimate, open_plan  # noqa: A004 - waferc.compile is the name that users expect

__all__ = ["CompiledModel", "Forecast", "WafercError", "compile", "estimate", "open_plan"]
