"""What the packaged weights bring: Dice on other real CTs after a training on few.

    python -m tests.benchmarks.check_finetune --train=DIR --test=DIR --out=OUT

For each length of training, `configs/finetune.py:spine` begins once with the packaged weights and
once with random ones, which need a higher learning rate: that of `configs/phantom_to_real.py`. All
scans of --train teach, and those of --test are scored between the highest and the lowest labelled
vertebra. Prints a table; OUT/finetune.png is the curve. Runs that are finished
in OUT are not trained again.
"""

import argparse
from pathlib import Path

import spinejax
from spinejax import progress
from spinejax.configs import phantom_to_real
from spinejax.reports.plots import Figure, FigureCanvasAgg, defaults
from spinejax.text_table import text_table
from spinejax.training import run_folder

STEPS = (100, 300, 1000)
WEIGHTS = {"packaged": "phantom", "random": ""}


def run(out: Path, weights: str, steps: int, data: str) -> Path:
    """Train unless the run is finished; return its folder."""
    workdir = out / f"{weights}-{steps}"
    if run_folder.finished_step(workdir) is None:
        config = spinejax.get_config("finetune:spine")
        config.data.root = data
        config.data.update(split="ratio", test_fraction=0.0, val_fraction=0.0)
        config.train.init_from = WEIGHTS[weights]
        config.train.steps = steps
        if weights == "random":
            config.optim.learning_rate = phantom_to_real.get_config().optim.learning_rate
        spinejax.train(config, workdir)
    return workdir


def dice(model: Path | str, data: Path, output: Path | None = None) -> dict[str, float]:
    """Return the Dice in the labelled range of each scan."""
    scores = spinejax.evaluate(
        model, data=data, output=output, checkpoint="latest", progress=progress.bars
    )
    return {name: one["labelled_range"]["dice"] for name, one in scores["cases"].items()}


@defaults()
def draw(found: dict[tuple[str, int], dict[str, float]], path: Path) -> None:
    """Draw the mean Dice over the steps."""
    figure = Figure(figsize=(6.4, 4.0), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.14, 0.86, 0.76))
    for weights, colour in (("packaged", "#1f78b4"), ("random", "#d95f02")):
        points = [(n, sum(d.values()) / len(d)) for (w, n), d in found.items() if w == weights]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=f"{weights} weights")
    axes.set_xscale("symlog", linthresh=100)
    axes.set_xticks([0, *STEPS], [str(n) for n in (0, *STEPS)])
    axes.set(ylim=(0, 1), xlabel="steps of training on the real scans", ylabel="Dice on others")
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, metadata={"Software": None})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = {("packaged", 0): dice("phantom", options.test, options.out / "untouched")}
    for steps in STEPS:
        for weights in WEIGHTS:
            folder = run(options.out, weights, steps, options.train)
            found[weights, steps] = dice(folder, options.test)
    names = sorted(found["packaged", 0])
    table = [["weights", "steps", *names]]
    table += [[w, str(n), *(f"{d[name]:.3f}" for name in names)] for (w, n), d in found.items()]
    print(text_table(table))
    draw(found, options.out / "finetune.png")


if __name__ == "__main__":
    main()
