"""Latency, load time, memory and size, each measured in processes of their own."""
