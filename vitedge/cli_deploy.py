"""The command line that carries artifacts to devices and into apps: bundle, embed, compare, report.

Each command is a thin face of a plain function in `commands/`, which it imports when it is called.
"""

import typer

# Merged into the one application by `cli.py`.
deploy = typer.Typer()
