"""What `benchmarks/gpu.py` consists of: the parts, the processes that they run in, and what is concluded."""
