"""What a checkpoint's folder states of its licence."""

from pathlib import Path

import pytest

from vitedge.converters.license import License, license_of

CARD = "---\n{front}\ntags: [vision]\n---\n# A model\nlicense: of-the-text\n"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({}, None),
        ({"README.md": "# A model\nlicense: mit\n"}, None),
        ({"README.md": CARD.format(front="license: apache-2.0")}, "apache-2.0"),
        ({"README.md": CARD.format(front="license: 'cc-by-nc-4.0'\r")}, "cc-by-nc-4.0"),
        ({"README.md": CARD.format(front="license: other\nlicense_name: dinov3-license")}, "dinov3-license"),
        ({"README.md": CARD.format(front="license: other")}, "other"),
        ({"README.md": CARD.format(front="license: \x1b[31m")}, None),
        ({"LICENSE": "\n   MIT License\n\nCopyright …\n"}, "MIT License"),
        ({"LICENSE": "MIT License\n", "README.md": CARD.format(front="license: mit")}, "mit"),
    ],
)
def test_its_name(files: dict[str, str], name: str | None, tmp_path: Path) -> None:
    for file, content in files.items():
        (tmp_path / file).write_text(content)
    assert license_of(tmp_path) == License(name, tuple(tmp_path / file for file in files if file == "LICENSE"))


def test_what_is_no_text_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").mkdir()
    (tmp_path / "LICENSE.big").write_bytes(b"x" * (2 << 20))
    (tmp_path / "LICENSE.md").write_bytes(b"\xff\xfe\n")
    (tmp_path / "README.md").mkdir()
    assert license_of(tmp_path) == License(None, (tmp_path / "LICENSE.md",))


@pytest.mark.parametrize("card", ["---\n" + "\n" * 500_000, "---\nlicense: x" + " " * 500_000 + "y\n---\n"])
def test_long_cards_are_read_at_once(card: str, tmp_path: Path) -> None:
    """Two regular expressions took hours for as much."""
    (tmp_path / "README.md").write_text(card)
    assert license_of(tmp_path).name is None
