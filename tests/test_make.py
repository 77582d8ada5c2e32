"""What `make` says where a target cannot do what it is for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKE = shutil.which("make")


@pytest.mark.skipif(os.environ.get("CI") is None and MAKE is None, reason="needs make")
def test_arm64_fails_where_everything_would_be_skipped(tmp_path: Path) -> None:
    """With an environment whose Python does nothing, and only the commands of a folder."""
    assert MAKE is not None
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python").symlink_to("/bin/true")
    (tmp_path / ".installed").touch()

    def ask() -> tuple[int, str]:
        command = [MAKE, "test-arm64", f"VENV={tmp_path}"]
        result = subprocess.run(
            command, cwd=ROOT, env={"PATH": str(tools)}, capture_output=True, text=True, check=False
        )
        return result.returncode, result.stderr

    for command in ("qemu-aarch64-static", "apt-get"):
        code, said = ask()
        assert code == 2
        assert f"test-arm64: found no {command}; it needs Debian's apt, and qemu-user-static" in said
        (tools / command).symlink_to("/bin/true")
    assert ask() == (0, "")
