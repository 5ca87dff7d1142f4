"""The handwritten digits that scikit-learn carries, as an image folder: real data that needs no download.

1,797 scans of 8x8 pixels (Alpaydin and Kaynak, UCI, 1998), written once as PNG files under train/ (1,437) and val/
(360), so that they are read like any other data set.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from data.errors import DataError

VAL_COUNT = 360


def write_digits(root: Path) -> Path:
    """Write the digits to `root` unless an image folder, as of some of them, lies there; several processes may.

    Returns: `root`. Raises: DataError if `root` holds something else or cannot be written.
    """
    exists = root.exists()  # asked first: another process may be putting them there
    if (root / "train").is_dir() and (root / "val").is_dir():
        return root
    if exists:
        raise DataError(f"not the digits: {root}: remove it, or name another folder with --data-path")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=root.name + ".", dir=root.parent))
        _write(unfinished)
        unfinished.chmod(0o755)
        try:
            os.rename(unfinished, root)
        except OSError:
            shutil.rmtree(unfinished)
            if not root.is_dir():  # else another process was faster
                raise
    except OSError as e:
        raise DataError(f"cannot write the digits ({e.strerror}): {root}: name another folder with --data-path") from e
    return root


def _write(root: Path) -> None:
    # imported here: a second of loading that only the first run of the quickstart needs
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    numbers = np.arange(len(labels))
    train, val = train_test_split(numbers, test_size=VAL_COUNT, stratify=labels, random_state=0)
    for part, chosen in (("train", train), ("val", val)):
        for number in chosen:
            folder = root / part / str(labels[number])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.round(images[number].reshape(8, 8) * (255 / 16)).astype(np.uint8)  # 16 is the darkest ink
            Image.fromarray(pixels).save(folder / f"{number:04d}.png")
