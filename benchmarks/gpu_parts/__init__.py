"""The parts of benchmarks/gpu_suite.py, one module each; `run(context)` yields the part's result as it grows."""
