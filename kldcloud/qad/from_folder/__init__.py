"""A folder of safetensors as a GGUF: what is stored, number for number, and nothing guessed."""
