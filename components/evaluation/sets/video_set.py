"""Videos with a mask of numbered objects in every frame, as DAVIS 2017 ships them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError
from components.evaluation.sets.dense_files import IGNORE, image_files, mask_of, same_size
from components.evaluation.sets.labelled_set import Benchmark, ImageFiles
from components.input_paths import InputPath
from components.params import Strict, fingerprint
from components.text import read_text

VOID = 255  # without a label


class DavisParams(Strict):
    """DAVIS 2017: ``JPEGImages/480p/VIDEO``, ``Annotations/480p/VIDEO``, and a list in ``ImageSets/2017``."""

    kind: Literal["davis"]
    path: InputPath
    list: str = "val"  # in ImageSets/2017
    size: str = "480p"  # folder of the frames


@dataclass(frozen=True)
class VideoSet:
    """Videos, frame by frame; all are held out."""

    pictures: Benchmark  # all frames of all videos
    masks: list[Path]  # of each frame
    sequences: list[list[int]]  # the rows of each video, in order

    @property
    def name(self) -> str:
        """In the metrics' names."""
        return self.pictures.name

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over frames and masks. The first access reads every file."""
        files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.masks]
        return fingerprint([self.pictures.digest, files, self.sequences])

    def mask(self, row: int) -> npt.NDArray[np.int64]:
        """The objects of frame ``row`` [H, W]: 0 is background, :data:`IGNORE` without a label.

        Raises:
            VitrailError: it cannot be read, or is not of the frame's size.
        """
        values = mask_of(self.masks[row].read_bytes(), str(self.masks[row]))
        same_size(values, self.pictures.images.rgb(row), str(self.masks[row]), "mask")
        return np.where(values == VOID, IGNORE, values).astype(np.int64)


def load_davis(name: str, params: DavisParams) -> VideoSet:
    """The videos of a list, unread.

    Raises:
        VitrailError: a list, folder or mask is missing, or a video has fewer than three frames.
    """
    root = Path(params.path)
    listed = root / "ImageSets" / "2017" / f"{params.list}.txt"
    try:
        videos = [line.strip() for line in read_text(listed).splitlines() if line.strip()]
    except FileNotFoundError:
        raise VitrailError(f"benchmark {name}: {listed}: no such list of videos") from None
    frames: list[Path] = []
    masks: list[Path] = []
    sequences: list[list[int]] = []
    for video in videos:
        folder, annotations = (root / part / params.size / video for part in ("JPEGImages", "Annotations"))
        if not folder.is_dir():
            raise VitrailError(f"benchmark {name}: {folder}: no such folder of frames")
        mine = image_files(folder)
        theirs = [annotations / f"{path.stem}.png" for path in mine]
        if missing := [path for path in theirs if not path.is_file()]:
            raise VitrailError(f"benchmark {name}: {missing[0]}: no such mask ({len(missing)} are missing)")
        if len(mine) < 3:
            raise VitrailError(f"benchmark {name}: {folder}: {len(mine)} frames; the first and last are not scored")
        sequences.append(list(range(len(frames), len(frames) + len(mine))))
        frames += mine
        masks += theirs
    if not frames:
        raise VitrailError(f"benchmark {name}: {listed}: names no video")
    keys = [f"{name}/{number:06d}" for number in range(len(frames))]
    pictures = Benchmark(name, keys, ImageFiles(frames), {}, {}, np.ones(len(frames), bool), held_out_only=True)
    return VideoSet(pictures, masks, sequences)
