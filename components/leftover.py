"""What a stage says when it leaves little: which values of params/ dropped how many images."""

from __future__ import annotations

from collections.abc import Mapping


def too_little(
    stage: str, kept: int, counts: Mapping[str, int], least: float, values: Mapping[str, str], file: str
) -> str:
    """One line when fewer than the share ``least`` of all images is kept, else "".

    Args:
        stage: the stage that prints the line.
        kept: images left.
        counts: images dropped by reason.
        least: share of all, 0 ... 1.
        values: reason -> the value that decided, such as ``graph.threshold 0.7``; other reasons lie in the images.
        file: the file that holds the values.
    """
    total = kept + sum(counts.values())
    if not total or kept >= least * total:
        return ""
    dropped = sorted((item for item in counts.items() if item[1]), key=lambda item: (-item[1], item[0]))
    parts = [f"{values[reason]} dropped {count:,} ({reason})" for reason, count in dropped if reason in values]
    parts += [f"{count:,} are {reason}" for reason, count in dropped if reason not in values]
    return (
        f"{stage}: {kept:,} of {total:,} images are left, less than {least:.0%} (least_kept): "
        + "; ".join(parts) + f". The values are in {file}"
    )  # fmt: skip
