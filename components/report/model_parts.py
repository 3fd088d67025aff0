"""The report's sections about models: curves of training, scores beside baselines, and PCA pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.pipeline import load_pipeline
from components.progress import duration
from components.report.data_parts import missing, read
from components.report.markup import picture, table, text
from components.report.plot import Curve, plot

_PLOTS = {
    "Losses": ("loss", "dino_global", "dino_local", "contrastive", "ibot", "koleo", "gram"),
    "Spread of the features and use of the prototypes (near 0: a collapse)": ("feature_std", "prototype_usage"),
    "Effective rank of the features (near 1: a collapse)": ("feature_rank",),
}
_PIXELS = "_raw_pixels"


def training(root: Path) -> str:
    """A part for each preset that this workspace trains."""
    pipeline = load_pipeline(root)
    families = {"pretrain": pipeline.pretrain, "continue": pipeline.continued, "distill": pipeline.distill}
    return "".join(
        f"<h3>{stage} {text(preset)}</h3>{_preset(root, stage, preset)}"
        for stage, presets in families.items()
        for preset in presets
    )


def _preset(root: Path, stage: str, preset: str) -> str:
    report = read(root / f"reports/{stage}-{preset}.json")
    curve = read(root / f"data/{stage}/{preset}/curve.json")
    if not report or not curve:
        return missing(f"{stage}@{preset}")
    facts = [f"{report.get('iterations', 0):,} steps", f"{report.get('images_seen', 0):,} images seen"]
    if report.get("minutes"):
        facts.append(duration(60 * float(report["minutes"])))
    if report.get("skipped_steps"):
        facts.append(f"<span class=bad>{report['skipped_steps']:,} steps skipped</span>")
    points, probes = curve.get("points", []), curve.get("probes", [])
    plots = [plot(title, _curves(points, names)) for title, names in _PLOTS.items()]
    for name in dict.fromkeys(key for point in probes for key in point if key != "step" and not key.endswith(_PIXELS)):
        found = _curves(probes, (name, name + _PIXELS))
        both = {
            words: found[key] for key, words in ((name, "this network"), (name + _PIXELS, "raw pixels")) if key in found
        }
        plots.append(plot(f"Probe on training images: {name.removeprefix('probe/')}", both))
    return f"<p>{', '.join(facts)}.</p><div class=plots>{''.join(plots)}</div>"


def _curves(points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, Curve]:
    found = {name: [(float(p["step"]), float(p[name])) for p in points if p.get(name) is not None] for name in names}
    return {name: curve for name, curve in found.items() if curve}


def scores(root: Path) -> str:
    """The benchmark's own table, baselines beside models."""
    path = root / "data/benchmark/table.md"
    if not path.is_file():
        return missing("benchmark")
    from markdown_it import MarkdownIt

    shown: str = MarkdownIt("commonmark", {"html": False}).enable("table").render(path.read_text(encoding="utf-8"))
    return shown.replace("<table>", "<div class=scroll><table>").replace("</table>", "</table></div>")


def pictures(root: Path) -> str:
    """The PCA pictures of the benchmark."""
    found = sorted((root / "data/benchmark/pca").glob("*.png"))
    if not found:
        return missing("benchmark")
    return (
        "<p>The colours are the first three principal components of the patch features. All images of a picture share "
        "one basis, so equal colours are equal features.</p>"
    ) + "".join(picture(path, path.stem) for path in found)


def best(root: Path) -> dict[str, object]:
    """The best score of a trained network on the first benchmark, and that of raw pixels beside it."""
    found = read(root / "reports/benchmark.json")
    trained = {name: _flat(scored) for name, scored in found.items() if name.startswith(("pretrain ", "distill "))}
    pixels = _flat(found.get("raw pixels", {}))
    columns = [column for scored in trained.values() for column in scored if column in pixels]
    if not columns:
        return {}
    column = next((name for name in columns if name.endswith("knn20")), columns[0])
    name = max(trained, key=lambda one: trained[one].get(column, 0.0))
    return {
        f"{name}, {column}, %": trained[name][column],
        f"raw pixels, {column}, %": pixels[column],
    }


def _flat(content: Mapping[str, Any], above: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in content.items():
        flat |= _flat(value, f"{above}{name} ") if isinstance(value, Mapping) else {f"{above}{name}": float(value)}
    return flat


def models(root: Path) -> str:
    """The exported models, with the command that uses each."""
    rows = [
        (folder, f"<code>vitrail embed --model {text(folder)} --images FOLDER --out data/features</code>")
        for folder in (path.parent.relative_to(root).as_posix() for path in sorted(root.glob("data/*/*/model.json")))
        if folder.split("/")[1] in ("pretrain", "distill")
    ]
    return table(("model", "features of other images"), rows, plain=(1,)) if rows else missing("pretrain")
