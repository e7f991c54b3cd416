"""The steps of ``benchmarks/gpu_check.py``: each runs in a process of its own and writes what it finds as it goes."""
