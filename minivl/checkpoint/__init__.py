"""A checkpoint on disk: config.json, parameters, safetensors files, memory."""
