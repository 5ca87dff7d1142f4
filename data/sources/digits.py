"""scikit-learn's handwritten digits as an image folder: real data without a download.

1,797 scans of 8x8 pixels (Alpaydin and Kaynak, UCI, 1998), written once as PNG files under train/ (1,437) and val/
(360), so that they are read like any other dataset.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import DataError
from utils.files import atomic_path

VAL_COUNT = 360
_ANOTHER = "choose another folder with --data-path"


def write_digits(root: Path) -> Path:
    """Writes the digits to `root`, unless it is an image folder already; safe to call from several processes.

    Returns: `root`. Raises: DataError if `root` is something else or not writable.
    """
    exists = root.exists()  # checked first: another process may be about to create it
    if (root / "train").is_dir() and (root / "val").is_dir():
        return root
    if exists:
        raise DataError(str(root), "exists, but does not contain the digits", f"remove it, or {_ANOTHER}")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(root) as temporary:
            _write(temporary)
    except OSError as e:
        if (root / "train").is_dir():  # another process was faster
            return root
        raise DataError(str(root), f"the digits cannot be written: {e.strerror}", _ANOTHER) from e
    return root


def _write(root: Path) -> None:
    # slow to import, and only needed by the first run of the quickstart
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    indices = np.arange(len(labels))
    train, val = train_test_split(indices, test_size=VAL_COUNT, stratify=labels, random_state=0)
    for split, chosen in (("train", train), ("val", val)):
        for i in chosen:
            folder = root / split / str(labels[i])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.round(images[i].reshape(8, 8) * (255 / 16)).astype(np.uint8)  # 16 is the darkest ink
            Image.fromarray(pixels).save(folder / f"{i:04d}.png")
