"""What each block runs on its tiles: the step of a plan as instructions of kernels, and where their values lie.

Here nothing is computed and nothing counted: the emulator runs a program (:mod:`targets.emulator`), the cost model says
what it moves (:mod:`targets.cost.traffic`).
"""
