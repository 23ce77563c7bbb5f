"""The model: vision tower, decoder, positions, KV cache, sampling, and the engine that joins them."""
