"""What `benchmarks/compare.py` consists of: measuring processes, figures, stages, and the two sides."""
