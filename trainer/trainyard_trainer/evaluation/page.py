"""The page of an evaluation: evaluation.json as tables and plots."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainyard_trainer.html_page import Page, minute, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEANINGS = {
    "loss": "mean cross-entropy in nats",
    "accuracy": "share of the positions whose most probable class is the actual one",
    "perplexity": "exponential of the loss",
    "precision": "mean over the classes: of the predictions of a class, the share that is right",
    "recall": "mean over the classes: of the positions of a class, the share that is found",
    "f1": "mean over the classes: harmonic mean of precision and recall",
}
PLOTTED_CLASSES = 40
"""Most classes of a confusion matrix whose counts are written into it."""
LISTED_CLASSES = 256
"""Most classes in the table of the classes: those with the most positions."""


def evaluation_page(content: Mapping[str, Any]) -> Page:
    """Return the page of an evaluation; `content`: that of evaluation.json."""
    weights, data = content["weights"], content["data"]
    step = "" if weights["step"] is None else f" after step {weights['step']:,}"
    page = Page(f"Evaluation of {weights['name']}", f"{weights['model']}{step}; {minute(content['created'])}")
    page.text(f"{data['description']}: {data['samples']}, {content['positions']:,} positions.")
    _metrics(page, content)
    if "sources" in content:
        _sources(page, content["sources"])
    if "classes" in content:
        _classes(page, content)
    if "calibration" in content:
        _calibration(page, content["calibration"])
    if "harness" in content:
        _harness(page, content["harness"])
    return page


def _metrics(page: Page, content: Mapping[str, Any]) -> None:
    page.heading("Metrics")
    rows = [(name, value, MEANINGS.get(name, "")) for name, value in content["metrics"].items()]
    if "calibration" in content:
        error = content["calibration"]["error"]
        rows.append(("calibration error", error, "mean difference between confidence and accuracy"))
    page.table(("metric", "value", ""), rows)


def _sources(page: Page, sources: Sequence[Mapping[str, Any]]) -> None:
    page.heading("Sources")
    columns = list(sources[0])
    page.table(columns, [[source[column] for column in columns] for source in sources])


def _classes(page: Page, content: Mapping[str, Any]) -> None:
    page.heading("Classes")
    columns = ("class", "actual", "predicted", "precision", "recall", "f1")
    most = sorted(content["classes"], key=lambda row: -row["actual"])[:LISTED_CLASSES]
    if len(most) < len(content["classes"]):
        page.text(
            f"The {len(most)} classes with the most positions; evaluation.json has all {len(content['classes'])}."
        )
    rows = [[str(row["class"]), *(row[c] for c in columns[1:])] for row in sorted(most, key=lambda row: row["class"])]
    averages = [[name, "", "", *(values[c] for c in columns[3:])] for name, values in content["averages"].items()]
    page.table(columns, rows)
    page.table(("mean", "", "", *columns[3:]), averages)
    if "confusion" in content:
        page.figure(
            _confusion(content["confusion"]),
            "Confusion matrix: how often each class (row) is predicted as each other one (column). Colours are shares "
            "of the row.",
        )


def _confusion(pairs: Sequence[Sequence[int]]) -> "Figure":
    size = len(pairs)
    side = min(9.0, 2.5 + 0.4 * size)
    figure = new_figure(side, side)
    axes = figure.add_subplot()
    shares = [[count / max(1, sum(row)) for count in row] for row in pairs]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted class", ylabel="actual class")
    if size <= PLOTTED_CLASSES:
        axes.set_xticks(range(size))
        axes.set_yticks(range(size))
        for i, row in enumerate(pairs):
            for j, count in enumerate(row):
                if count:
                    color = "white" if shares[i][j] > 0.5 else "black"
                    axes.text(j, i, f"{count}", ha="center", va="center", color=color, fontsize=8)
    return figure


def _calibration(page: Page, calibration: Mapping[str, Any]) -> None:
    page.heading("Calibration")
    page.text(
        f"Expected calibration error: {calibration['error']:.4f}. A calibrated model is right as often as it is sure: "
        "its points are on the diagonal. Below it the model is too sure of itself, above it not sure enough."
    )
    bins = calibration["bins"]
    figure = new_figure(6, 6)
    curve, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curve.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="dashed")
    curve.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o", clip_on=False)
    curve.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    total = sum(b["positions"] for b in bins) or 1
    width = bins[0]["to"] - bins[0]["from"] if bins else 1.0
    counts.bar(
        [b["from"] for b in bins], [b["positions"] / total for b in bins], width, align="edge", edgecolor="white"
    )
    counts.set(xlabel="confidence: probability of the predicted class", ylabel="share")
    page.figure(figure, "Reliability curve, and how the predictions are distributed over the confidence.")


def _harness(page: Page, results: Sequence[Mapping[str, Any]]) -> None:
    page.heading("Results of lm-evaluation-harness")
    rows = [
        (row["task"], row["metric"], row["value"], "" if row["error"] is None else f"± {row['error']:.4f}")
        for row in results
    ]
    page.table(("task", "metric", "value", "standard error"), rows)
