"""Speed and memory beside other implementations; `python -m benchmarks.run` measures, README.md tells how."""
