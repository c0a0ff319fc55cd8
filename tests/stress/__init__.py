"""The attacks on the commands: kills, failed system calls, damaged files and hostile inputs (docs/stress.md).

`make stress` runs them (`python -m stress` with `tests` on the path). No file here is collected by pytest.
"""
