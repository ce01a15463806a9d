"""The page of explanations: explanation.json as pictures and coloured texts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainyard_trainer.html_page import Page, minute, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN_CLASSES, SHOWN_ROWS, SHOWN_ERRORS = 20, 10, 6
"""Most classes, rows of different predicted classes, and wrongly classified rows on a page."""
SHOWN_FEATURES = 30
"""Most columns of a table in a bar chart: those that matter most."""


def explanation_page(content: Mapping[str, Any]) -> Page:
    """Return the page of explanations; `content`: that of explanation.json."""
    weights, data = content["weights"], content["data"]
    step = "" if weights["step"] is None else f" after step {weights['step']:,}"
    page = Page(f"Explanations of {weights['name']}", f"{weights['model']}{step}; {minute(content['created'])}")
    if content["kind"] == "table":
        _table(page, content, data)
    else:
        _tokens(page, content, data)
    return page


def _gap_text(method: Mapping[str, Any]) -> str:
    gap, tolerance = method["largestGap"], method["tolerance"]
    text = f"The attributions of a prediction sum to the difference of the outputs, to {gap:.1g} at most."
    if gap > tolerance:
        text += f" This is more than {tolerance:g}: the integral has not converged, so read small values with care."
    return text


# --- tables ----------------------------------------------------------------------------------------------------------


def _table(page: Page, content: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    method, rows = content["method"], content["samples"]
    page.text(f"{data['description']}: {len(rows):,} rows are explained.")
    page.text(
        "Each value says how much a column has moved the score (logit) of the predicted class, compared with a row of "
        f"mean values ({method['baseline']}): blue raises it, red lowers it. {_gap_text(method)}"
    )
    similarity = method["similarityToRandom"]
    page.text(
        "Rank correlation with the maps of a model with random weights: "
        f"{similarity:.2f}. Near 1 the maps would show the data alone, and nothing that the model has learnt."
    )
    width = content["imageWidth"]
    page.heading("Overall")
    page.figure(_overall(content["overall"], width), "Mean size of the attributions over all explained rows.")
    page.heading("By class")
    classes = content["classes"][:SHOWN_CLASSES]
    titles = [f"{entry['class']}  ({entry['count']} rows)" for entry in classes]
    page.figure(
        _grid([entry["gradients"] for entry in classes], titles, width),
        "Integrated gradients: mean over the rows that are predicted as the class.",
    )
    page.figure(
        _grid([entry["ablation"] for entry in classes], titles, width),
        "Feature ablation: mean decrease of the score if the column alone has its mean value.",
    )
    page.heading("Single rows")
    firsts = list({row["predicted"]: row for row in reversed(rows)}.values())
    right = sorted((r for r in firsts if r["predicted"] == r["actual"]), key=lambda r: r["predicted"])[:SHOWN_ROWS]
    wrong = [row for row in rows if row["predicted"] != row["actual"]][:SHOWN_ERRORS]
    if right:
        page.figure(_examples(right, width), "One row of each class: its values, and why it is predicted so.")
    if wrong:
        page.figure(_examples(wrong, width), "Rows that are predicted wrongly.")


def _overall(means: Mapping[str, Any], width: int | None) -> "Figure":
    titles = ["integrated gradients", "feature ablation"]
    return _grid([means["gradients"], means["ablation"]], titles, width, signed=False, columns=2)


def _grid(
    maps: Sequence[Sequence[float]],
    titles: Sequence[str],
    width: int | None,
    *,
    signed: bool = True,
    columns: int = 5,
) -> "Figure":
    """Return maps side by side, each with its own scale."""
    if width is None:
        columns = min(columns, 2)
    columns = min(columns, len(maps))
    lines = -(-len(maps) // columns)
    height = 1.9 if width is not None else 2.6
    figure = new_figure(1.9 * columns if width is not None else 4.5 * columns, height * lines)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for place, values, title in zip(axes, maps, titles, strict=False):
        _draw(place, values, title, width, signed=signed)
    for place in axes[len(maps) :]:
        place.axis("off")
    return figure


def _draw(axes: "Axes", values: Sequence[float], title: str, width: int | None, *, signed: bool) -> None:
    largest = max(map(abs, values)) or 1.0
    axes.set_title(title, fontsize=9)
    if width is not None:
        image = [values[start : start + width] for start in range(0, len(values), width)]
        axes.imshow(image, cmap="RdBu" if signed else "Blues", vmin=-largest if signed else 0, vmax=largest)
        axes.axis("off")
        return
    chosen = sorted(sorted(range(len(values)), key=lambda i: -abs(values[i]))[:SHOWN_FEATURES])
    heights = [values[i] for i in chosen]
    axes.bar(range(len(chosen)), heights, color=["tab:blue" if height > 0 else "tab:red" for height in heights])
    axes.set_xticks(range(len(chosen)), [str(i) for i in chosen], fontsize=6, rotation=90)
    axes.set_xlabel("column", fontsize=8)


def _examples(rows: Sequence[Mapping[str, Any]], width: int | None) -> "Figure":
    """Return for each row its values, integrated gradients, and ablation, below each other."""
    names = ("features", "gradients", "ablation")
    if width is None:
        maps = [row["gradients"] for row in rows]
        return _grid(maps, [_row_title(row) for row in rows], None)
    figure = new_figure(1.3 * len(rows) + 0.6, 4.4)
    axes = figure.subplots(3, len(rows), squeeze=False)
    for column, row in enumerate(rows):
        for line, name in enumerate(names):
            _draw(axes[line][column], row[name], "", width, signed=name != "features")
        axes[0][column].images[0].set(cmap="Greys", clim=(min(row["features"]), max(row["features"])))
        axes[0][column].set_title(_row_title(row), fontsize=8)
    for line, name in enumerate(("values", "integrated\ngradients", "ablation")):
        axes[line][0].text(-0.12, 0.5, name, rotation=90, va="center", ha="right", transform=axes[line][0].transAxes)
    return figure


def _row_title(row: Mapping[str, Any]) -> str:
    truth = "" if row["actual"] == row["predicted"] else f"\nis {row['actual']}"
    return f"{row['predicted']} ({row['probability']:.0%}){truth}"


# --- texts -----------------------------------------------------------------------------------------------------------


def _tokens(page: Page, content: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    method, texts = content["method"], content["texts"]
    count = "one prediction of a next token is" if len(texts) == 1 else f"{len(texts)} predictions of a next token are"
    page.text(f"{data['description']}: {count} explained.")
    page.text(
        "Each colour says how much a token has moved the logarithm of the probability of the predicted token, compared "
        f"with {method['baseline']}: blue raises it, red lowers it. {_gap_text(method)}"
    )
    if any(len(text["tokens"]) > 1 for text in texts):
        page.heading("How far back the model looks")
        page.figure(_distances(content["distance"]), "Mean share of the attributions by distance from the prediction.")
    page.heading("Predictions")
    for text in texts:
        predicted, actual = text["predicted"], text["actual"]
        where = "" if text["sample"] is None else f"Sample {text['sample']:,}. "
        truth = "" if actual is None else f", the data has {actual!r}"
        others = [f"{other['text']!r} {other['probability']:.1%}" for other in text["alternatives"][1:]]
        page.text(
            f"{where}Predicted: {predicted['text']!r} with probability {predicted['probability']:.1%}{truth}. "
            f"Others: {', '.join(others)}."
        )
        page.tokens(text["tokens"], text["weights"])


def _distances(shares: Sequence[float]) -> "Figure":
    figure = new_figure(7, 2.6)
    axes = figure.add_subplot()
    axes.bar(range(1, len(shares) + 1), shares)
    axes.locator_params(axis="x", integer=True)  # there is no half token
    axes.set(xlabel="tokens before the prediction (1: the last one)", ylabel="share")
    return figure
