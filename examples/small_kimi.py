"""Run a small sibling of Kimi K2.6 on emulated wafers: the experts of a layer on one wafer, layers in a pipeline."""

import waferc
from targets.emulator import generate

placed = waferc.compile("small-kimi", target="mini", context=64)
for wafer in placed.plan.wafers_used:
    print(wafer, *(block.name for block in placed.plan.on_wafer(wafer)))

made = generate(placed.emulator(seed=0), prompt_ids=[1, 5, 9, 2], tokens=8)
print("tokens", *made.tokens)
print("bytes between wafers for the last token", made.counters[-1].transfer_bytes)
