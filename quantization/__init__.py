"""The quantization plan, how it is computed, and the proof of what it cost."""
