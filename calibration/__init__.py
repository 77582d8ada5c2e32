"""Calibration images, activation observers and their cache."""
