"""What the command lines of these scripts take."""

import argparse


def positive(text: str) -> int:
    """A number of at least 1, for `argparse`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text}")
    return int(text)
