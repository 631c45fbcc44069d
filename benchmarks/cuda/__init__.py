"""Measures attention_ext on a GPU beside its peers there: python -m benchmarks.cuda."""
