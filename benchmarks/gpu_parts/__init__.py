"""The parts of benchmarks/gpu_suite.py, one module each; `run(context)` yields rows as they are measured.

`plan` says which call measures what, `runner` runs it in processes of its own, `rows` keeps what was measured,
`collect`, `derived` and `render` make the summary out of that.
"""
