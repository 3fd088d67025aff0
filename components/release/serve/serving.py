"""What a served model answers: rows of images by bytes, path, address or pixels become rows of features.

A row that cannot be used says why in its column ``error``; the others are not held up.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from components.errors import VitrailError
from components.params import Strict, parse_params
from components.release.serve.remote_images import UrlParams, fetch_images

if TYPE_CHECKING:
    from components.release.use.features import FeatureSpec, ImageFeatures, Picture
    from components.release.weights.load import LoadedModel
    from components.tracking.pyfunc import Answer

OVERRIDE = "VITRAIL_SERVE"  # variable: JSON of ServeParams, before what the model was registered with
COLUMNS = ("image", "path", "url", "pixels")
FEATURES = ("cls", "mean", "patches")
_NPY = b"\x93NUMPY"


class ServeParams(Strict):
    """``params/serve.yaml``."""

    device: str = "auto"  # auto, cpu, cuda or cuda:N
    size: int | None = Field(None, ge=1, le=65_536)  # px of the square that images are resized to; null: the model's
    crop: bool = False  # cut sides that are no multiple of the patch
    batch: int = Field(32, ge=1, le=65_536)  # images a forward pass
    max_rows: int = Field(1024, ge=1, le=1_000_000)  # images a request
    max_pixels: int = Field(50_000_000, ge=1, le=2**31)  # of an array; encoded images have the decoder's limits
    roots: list[str] = ["."]  # folders below which paths may lie; none: paths are refused
    urls: UrlParams | None = UrlParams()  # null: addresses are refused


def open_model(folder: Path, config: Mapping[str, Any]) -> Answer:
    """Load the model in ``folder`` (an export of ours); what answers requests under ``config`` (:class:`ServeParams`).

    The variable VITRAIL_SERVE, JSON of the same keys, goes before ``config``.
    """
    from components.release.weights.load import load_model

    given = dict(config) | json.loads(os.environ.get(OVERRIDE) or "{}")
    params = parse_params(given, ServeParams, "params/serve.yaml")
    model = load_model(folder, params.device, with_heads=False)
    return lambda table, asked: answer(model, params, table, asked)


def answer(model: LoadedModel, params: ServeParams, table: Any, asked: Mapping[str, Any]) -> Any:
    """The answer to a request.

    Args:
        table: a pandas DataFrame with the columns ``image`` (an encoded image, or a ``.npy`` file of pixels; bytes or
            base64), ``path``, ``url`` and ``pixels`` (uint8 [H, W, 3], or [H, W] where gray; nested lists will do).
            Each row has one.
        asked: ``features``: ``cls``, ``mean`` and ``patches``, any of them, separated by commas.

    Returns:
        A DataFrame, row for row: ``error`` ("" where there is none), ``height``, ``width``, ``grid``, and a column of
        lists for each feature; ``patches`` are [rows, columns, D].

    Raises:
        VitrailError: too many rows, or no such feature.
    """
    import pandas as pd

    from components.release.use.features import embed

    if len(table) > params.max_rows:
        raise VitrailError(
            f"{len(table)} images in a request; at most {params.max_rows} (max_rows in params/serve.yaml)"
        )
    kinds = [name.strip() for name in str(asked.get("features") or "cls").split(",")]
    if unknown := [name for name in kinds if name not in FEATURES]:
        raise VitrailError(f"features {unknown[0]!r}: choose from {', '.join(FEATURES)}")
    columns: dict[str, list[Any]] = {name: [] for name in ("error", "height", "width", "grid", *kinds)}
    for row in embed(model, _images(table, params), _spec(params, kinds)):
        for name, value in _plain(row, kinds).items():
            columns[name].append(value)
    return pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})


def _spec(params: ServeParams, kinds: Sequence[str]) -> FeatureSpec:
    from components.release.use.features import FeatureSpec

    content = {"kinds": kinds, "size": params.size, "crop": params.crop, "batch": params.batch}
    return parse_params(content, FeatureSpec, "params/serve.yaml")


def _plain(row: ImageFeatures, kinds: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"error": row.error, "height": row.height, "width": row.width, "grid": list(row.grid)}
    for kind in kinds:
        values = getattr(row, kind)
        found[kind] = None if values is None else values.tolist()
    return found


def _images(table: Any, params: ServeParams) -> Iterator[tuple[str, Picture | VitrailError]]:
    """Key and picture of each row, a batch at a time: addresses are fetched together."""
    known = [name for name in COLUMNS if name in table.columns]
    rows = table[known].to_dict("records") if known else [{}] * len(table)
    for start in range(0, len(rows), params.batch):
        given = [{k: v for k, v in row.items() if not _missing(v)} for row in rows[start : start + params.batch]]
        single = [row if len(row) == 1 else {} for row in given]
        urls = [str(row["url"]) for row in single if "url" in row]
        fetched = iter(fetch_images(urls, params.urls) if params.urls else [_off("addresses", "urls")] * len(urls))
        for offset, (row, one) in enumerate(zip(given, single, strict=True)):
            key = str(start + offset)
            if "url" in one:
                yield key, next(fetched)
            elif not one:
                which = ", ".join(row) or "none"
                yield key, VitrailError(f"an image is named by one of {', '.join(COLUMNS)}; this row has {which}")
            else:
                yield key, _picture(next(iter(one)), next(iter(one.values())), params)


def _picture(column: str, value: Any, params: ServeParams) -> Picture | VitrailError:
    try:
        if column == "path":
            return _allowed(str(value), params.roots)
        if column == "pixels":
            return _pixels(value, params.max_pixels)
        data = _bytes(value)
        return _array_file(data, params.max_pixels) if data.startswith(_NPY) else data
    except VitrailError as fault:
        return fault


def _bytes(value: Any) -> bytes:
    """Bytes as they are, or from base64, as JSON holds them."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, TypeError):
        raise VitrailError("image: neither bytes nor base64") from None


def _allowed(named: str, roots: Sequence[str]) -> Path:
    """The file, if it lies below one of ``roots``; links are followed first."""
    if not roots:
        raise _off("paths", "roots")
    path = Path(os.path.realpath(named))
    if not any(path.is_relative_to(os.path.realpath(root)) for root in roots):
        raise VitrailError(f"{named}: refused: not below {', '.join(roots)} (roots in params/serve.yaml)")
    return path


def _off(what: str, key: str) -> VitrailError:
    return VitrailError(f"{what} are refused here ({key} in params/serve.yaml)")


def _pixels(value: Any, most: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        array = value if isinstance(value, np.ndarray) and value.dtype != object else np.array(value)
    except ValueError:  # rows of several lengths
        raise VitrailError("pixels: rows differ in length; an image is uint8 [H, W, 3], or [H, W] where gray") from None
    if array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        array = array.astype(np.uint8)
    if array.ndim >= 2 and array.shape[0] * array.shape[1] > most:
        raise VitrailError(f"too-many-pixels: {array.shape[0]} x {array.shape[1]}; at most {most}")
    if array.ndim == 3 and array.shape[2] not in (1, 3):
        raise VitrailError(f"pixels: {array.shape[2]} channels; give 3, or 1 where gray")
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _array_file(data: bytes, most: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A ``.npy`` file; its header is checked before its content is read, and no object is unpickled."""
    try:
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype != np.uint8:
            raise VitrailError(f"a .npy file of {dtype}; pixels are uint8")
        if int(np.prod(shape, dtype=object)) > len(data):
            raise VitrailError(f"a .npy file of {shape} that is cut short")
        return _pixels(np.load(io.BytesIO(data), allow_pickle=False), most)
    except (ValueError, EOFError, OSError) as fault:
        raise VitrailError(f"a damaged .npy file ({' '.join(str(fault).split())[:100]})") from None


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))
