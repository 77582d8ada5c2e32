"""The images below a folder, in a fixed order."""

from pathlib import Path

from vitedge.runtimes.errors import ImageSetError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def list_images(folder: Path) -> tuple[Path, ...]:
    """Every image below a folder, by path; hidden files and folders are left out, links to folders not followed.

    Raises:
        ImageSetError: No such folder, or no image in it.
    """
    if not folder.is_dir():
        raise ImageSetError(f"{folder}: no such folder; expected one with images ({', '.join(SUFFIXES)})")
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise ImageSetError(f"{folder}: no images in it or below; expected {', '.join(SUFFIXES)} files")
    return tuple(sorted(found, key=lambda path: path.relative_to(folder).as_posix()))
