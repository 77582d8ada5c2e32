"""The commands as plain functions, one module each."""
