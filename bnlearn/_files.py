"""Files that are written whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

__all__ = ["write_at_once"]


def write_at_once(path: Path, text: str) -> None:
    """Write ``text`` to ``path``; a file that was there stays as it is until the new one is complete.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as part:
        try:
            part.write(text)
            part.close()
            Path(part.name).chmod(0o644)
            Path(part.name).replace(path)
        except BaseException:
            part.close()
            Path(part.name).unlink(missing_ok=True)
            raise
