"""What a training step costs: FLOPs, bytes, parameters, measured on the objective that a run minimises.

`task` says what is measured, `measure` does it, `ledger` is how. Everything that names a cost asks these: the progress
line, `sdfast plan`, `sdfast bench`, the benchmarks. `zero_memory` and `plan` are arithmetic, as there is no machine of
1,024 devices to measure; `peak` and `resident` measure the machine that is here.
"""
