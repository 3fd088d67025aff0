"""The page of a map: Bokeh's plot with what a person chooses beside it. Complete in one file but for thumbnails."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

ALL, COPIES = "all images", "images with copies"
SHOWN = 60  # pictures beside the map, of the points that are selected
WEBGL_FROM = 5_000  # points; fewer are drawn without it
_PICTURE = """
<div style="max-width:220px">
<img src="thumbnail/@row.jpg" alt="" style="max-width:200px">
<div>@key</div><div>@label</div><div>@decision</div></div>
"""
# Text of the user's files goes into the page by textContent alone.
_SELECTED = """
const box = document.createElement("div");
const groups = new Set();
const rows = new Set(cb_obj.indices);
for (const i of cb_obj.indices) { if (source.data.group[i] >= 0) groups.add(source.data.group[i]); }
for (let i = 0; i < source.data.group.length; i++) { if (groups.has(source.data.group[i])) rows.add(i); }
const shown = [...rows].slice(0, most);
for (const i of shown) {
  const figure = document.createElement("figure");
  figure.style.cssText = "display:inline-block;width:104px;margin:3px;vertical-align:top;font:11px sans-serif";
  figure.style.overflowWrap = "anywhere";
  const image = document.createElement("img");
  image.src = "thumbnail/" + source.data.row[i] + ".jpg";
  image.style.maxWidth = "100%";
  const text = document.createElement("figcaption");
  text.textContent = [source.data.key[i], source.data.label[i], source.data.decision[i]].filter(Boolean).join(" | ");
  figure.append(image, text);
  box.append(figure);
}
const count = document.createElement("p");
count.textContent = rows.size + " images" + (rows.size > cb_obj.indices.length ? ", copies included" : "") +
  (rows.size > most ? "; the first " + most : "");
box.prepend(count);
panel.text = box.innerHTML;
"""
_FILTER = """
const d = source.data, chosen = cb_obj.value, keep = [];
for (let i = 0; i < d.key.length; i++) {
  keep.push(chosen == all || (chosen == copies ? d.group[i] >= 0 : d.label[i] == chosen || d.decision[i] == chosen));
}
filter.booleans = keep;
source.change.emit();
"""
_COLOUR = """
glyph.fill_color = {field: "colour_" + cb_obj.value};
legend.text = legends[cb_obj.value];
source.change.emit();
"""


def page(points: Any, facts: Mapping[str, Any]) -> str:
    """The page of ``points`` (an Arrow table of :mod:`components.release.use.explore`)."""
    from bokeh.embed import file_html
    from bokeh.layouts import column, row
    from bokeh.resources import INLINE

    map_, source, renderer, kept = _map(points)
    by = [name for name in ("label", "decision") if any(source.data[name])]
    legends = {name: _legend(source.data[name]) for name in by}
    controls, panel = _controls(source, renderer, kept, by, legends)
    named = f"{facts['shown']:,} of {facts['rows']:,} images of {facts['images']}, by {facts['model']}"
    layout = row(map_, column(*controls, panel, width=380), sizing_mode="stretch_both")
    return str(file_html(layout, INLINE, f"Map: {named}"))


def _map(points: Any) -> tuple[Any, Any, Any, Any]:
    from bokeh.models import BooleanFilter, CDSView, ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    columns = {name: points[name].to_pylist() for name in ("key", "label", "group", "status", "reason")}
    decision = [": ".join(filter(None, pair)) for pair in zip(columns["status"], columns["reason"], strict=True)]
    source = ColumnDataSource({
        "x": points["x"].to_numpy(), "y": points["y"].to_numpy(), "row": list(range(len(points))),
        "key": columns["key"], "label": columns["label"], "group": columns["group"], "decision": decision,
        "colour_label": colours(columns["label"]), "colour_decision": colours(decision),
    })  # fmt: skip
    kept = BooleanFilter(booleans=[True] * len(points))
    map_ = figure(
        name="map", tools="pan,wheel_zoom,box_zoom,lasso_select,tap,reset", active_scroll="wheel_zoom",
        match_aspect=True,
        sizing_mode="stretch_both", output_backend="webgl" if len(points) >= WEBGL_FROM else "canvas",
    )  # fmt: skip
    map_.axis.visible = map_.grid.visible = False
    first = "colour_label" if any(columns["label"]) else "colour_decision"
    _copies(map_, points)
    renderer = map_.scatter(
        "x", "y", source=source, view=CDSView(filter=kept), size=7, line_color=None, fill_color=first, fill_alpha=0.8,
        nonselection_fill_alpha=0.15, name="images",
    )  # fmt: skip
    map_.add_tools(HoverTool(tooltips=_PICTURE, renderers=[renderer], mode="mouse"))
    return map_, source, renderer, kept


def _copies(map_: Any, points: Any) -> None:
    """A line from each image with copies to the first of its group."""
    first: dict[int, tuple[float, float]] = {}
    lines: tuple[list[list[float]], list[list[float]]] = ([], [])
    for group, x, y in zip(*(points[name].to_pylist() for name in ("group", "x", "y")), strict=True):
        if group >= 0 and group in first:
            lines[0].append([first[group][0], x])
            lines[1].append([first[group][1], y])
        elif group >= 0:
            first[group] = (x, y)
    if lines[0]:
        map_.multi_line(*lines, line_color="#888888", line_alpha=0.5)


def _controls(
    source: Any, renderer: Any, kept: Any, by: Sequence[str], legends: Mapping[str, str]
) -> tuple[list[Any], Any]:
    from bokeh.models.callbacks import CustomJS
    from bokeh.models.widgets import Div, Select

    panel = Div(text="Click a point, or draw around some, to see their pictures.", width=380, disable_math=True)
    legend = Div(text=legends[by[0]] if by else "", width=380, disable_math=True)
    choices = [ALL, *sorted({value for name in by for value in source.data[name] if value})]
    if any(group >= 0 for group in source.data["group"]):
        choices.insert(1, COPIES)
    shown = Select(title="Show", value=ALL, options=choices)
    given = {"source": source, "filter": kept, "all": ALL, "copies": COPIES}
    shown.js_on_change("value", CustomJS(args=given, code=_FILTER))
    chosen = CustomJS(args={"source": source, "panel": panel, "most": SHOWN}, code=_SELECTED)
    source.selected.js_on_change("indices", chosen)
    controls = [shown]
    if len(by) > 1:
        named: list[str | tuple[Any, str]] = [*by]
        colour = Select(title="Colour by", value=by[0], options=named)
        given = {"glyph": renderer.glyph, "legend": legend, "legends": dict(legends), "source": source}
        colour.js_on_change("value", CustomJS(args=given, code=_COLOUR))
        controls.append(colour)
    return [*controls, legend], panel


def colours(values: Sequence[str]) -> list[str]:
    """A colour for each value; equal values have equal ones, and no value is gray."""
    known = _palette(values)
    return [known.get(value, "#999999") for value in values]


def _palette(values: Sequence[str]) -> dict[str, str]:
    from bokeh.palettes import Category10, Turbo256

    names = sorted({value for value in values if value})
    if len(names) <= 10:
        return dict(zip(names, Category10[10], strict=False))
    return {name: Turbo256[number * 255 // (len(names) - 1)] for number, name in enumerate(names)}


def _legend(values: Sequence[str], most: int = 30) -> str:
    known = _palette(values)
    lines = [
        f'<span style="color:{colour}">&#9679;</span> {html.escape(name)} ({sum(value == name for value in values):,})'
        for name, colour in list(known.items())[:most]
    ]
    return "<br>".join([*lines, *([f"and {len(known) - most} more"] if len(known) > most else [])])
