"""A model card for people beside the weights: what it is, what it saw, how it scores, what was taken down since."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.code_version import commit
from components.errors import VitrailError
from components.learning.export import BACKBONE, ModelCard
from components.release.weights.export import described, save_model
from components.release.weights.fetch import file_sha256
from components.release.weights.load import LoadedModel
from components.storage import atomic_file

NAME = "README.md"


@dataclass(frozen=True)
class CardFacts:
    """What the weights themselves do not say."""

    licence: str = ""  # SPDX name, such as apache-2.0
    scores: Path | None = None  # JSON report of the benchmark
    model: str = ""  # where it was, by which receipts name it
    receipts: tuple[Path, ...] = ()  # JSON reports of `python -m components.provenance forget`


def export_safetensors(model: LoadedModel, out: Path, facts: CardFacts) -> None:
    """Write ``model`` as an export of ours with a model card (``README.md``) beside it.

    Raises:
        VitrailError: a report is missing or not JSON.
    """
    text = _sections(model, facts)  # before anything is written: reports may be missing
    save_model(model, out)
    with atomic_file(out / NAME, "w") as file:
        file.write(text.replace("{sha256}", file_sha256(out / BACKBONE)))


def _sections(model: LoadedModel, facts: CardFacts) -> str:
    card = model.card
    lines = ["---", f"license: {facts.licence or 'unknown'}", "tags: [dinov2, self-supervised]", "---", ""]
    lines += [f"# {card.preset}", "", described(model).capitalize() + ".", "", "| fact | value |", "|---|---|"]
    rows: dict[str, Any] = {
        "licence": facts.licence or "not stated",
        "weights (sha256)": "{sha256}",
        "steps trained": card.step,
        "fingerprint of params and data": card.params_fingerprint or "not known: imported",
        "data digest": card.data_digest or "not known: imported",
        "teacher": card.teacher or "none",
        "started from": card.init.source if card.init else "random weights" if card.source is None else "not known",
        "source": card.source or "trained here",
        "source (sha256)": card.source_sha256 or "trained here",
        "MLflow model": card.model_id or "none",
        "code that trained it": card.commit or "not known",
        "code that exported it": commit() or "not known",
        "input": f"RGB / 255, mean {list(card.mean)}, std {list(card.std)}; trained at {card.image_size} px",
    }
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    lines += [
        "",
        "## Scores",
        "",
        *_scores(card, facts.scores),
        "",
        "## Taken down since",
        "",
        *_taken_down(card, facts),
    ]
    return "\n".join(lines) + "\n"


def _scores(card: ModelCard, report: Path | None) -> list[str]:
    if report is None:
        return ["No benchmark report was given."]
    content = json.dumps(_json(report), indent=1)
    return [f"From `{report}`, protocol and all:", "", "```json", content, "```"]


def _taken_down(card: ModelCard, facts: CardFacts) -> list[str]:
    """Of each receipt whether it names this model's training set."""
    if not facts.receipts:
        return ["No receipts of take-downs were given: what was forgotten since training is not known here."]
    lines = []
    for path in facts.receipts:
        content = _json(path)
        holders = content.get("models", []) if isinstance(content, dict) else []
        named = {str(Path(folder).resolve()) for folder, _ in holders}
        seen = bool(facts.model) and str(Path(facts.model).resolve()) in named
        seen = seen or bool(card.data_digest and json.dumps(card.data_digest) in json.dumps(content))
        told = "images that this model was trained on" if seen else "no image that it is known to have been trained on"
        lines.append(f"- `{path.name}` took down {told}.")
    return lines


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VitrailError(f"{path}: no such report for the model card") from None
    except ValueError as fault:
        raise VitrailError(f"{path}: not valid JSON ({fault})") from None
