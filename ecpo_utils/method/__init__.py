"""The training stages of the paper. Imports dialogue, llm and core; the only layer that may import trl and peft."""
