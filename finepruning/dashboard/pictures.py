"""Pictures of runs taken into the page, as far as they fit."""

import base64
import io
from pathlib import Path

MOST_BYTES = 3_500_000  # of all pictures together, as they stand in the page
MOST_SIDE = 1400  # pixels


class Pictures:
    """Pictures as data URIs: one a kind and setting, none once ``most_bytes`` are used up."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.embedded: list[str] = []
        self._places: dict[tuple[str, str], int] = {}

    def place(self, folder: Path, file: object, setting: str) -> int | None:
        """Return which embedded picture shows this one; None where there is none or no room.

        Args:
            folder: The run's.
            file: Path of a PNG file in it, as the record gives it.
            setting: Runs of one setting show one picture of this kind.
        """
        if not isinstance(file, str):
            return None
        key = (Path(file).name, setting)
        if key not in self._places:
            uri = self._uri(folder, file)
            if uri is None or sum(map(len, self.embedded)) + len(uri) > self.most_bytes:
                return None
            self._places[key] = len(self.embedded)
            self.embedded.append(uri)
        return self._places[key]

    @staticmethod
    def _uri(folder: Path, file: str) -> str | None:
        path = (folder / file).resolve()
        if not path.is_relative_to(folder.resolve()):  # a foreign record points anywhere
            return None
        from PIL import Image  # here, since most folders have no pictures

        try:
            with Image.open(path, formats=["PNG"]) as picture:
                picture.thumbnail((MOST_SIDE, MOST_SIDE))
                out = io.BytesIO()
                picture.save(out, "PNG", optimize=True)
        except (OSError, ValueError, Image.DecompressionBombError):
            return None
        return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
