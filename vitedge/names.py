"""Names of modules and tensors, shortened for people."""


def pattern(name: str) -> str:
    """With layers' numbers as stars: `layers.7.mlp.fc1` becomes `layers.*.mlp.fc1`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
