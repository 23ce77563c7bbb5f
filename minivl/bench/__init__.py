"""Benchmarks against transformers, llama.cpp and the limits of the machine."""
