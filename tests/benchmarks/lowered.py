"""Counts of what the training steps hand to XLA on a GPU, without one.

    python -m tests.benchmarks.lowered

Prints the tables of `docs/scaling.md`: for each network, the training step is lowered to StableHLO
for CUDA, on any machine, and the operations are counted; for phantoms, the loops of the program
that draws a batch are. Nothing is compiled and nothing is run.
The networks are small, but have all kinds of layers of their configs. `spineparsenet` is its 3D
network alone: its 2D network is `resunet`.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxprs_in_params

from spinejax.configs import phantom_to_real
from spinejax.phantom import once, online
from spinejax.tasks import build_task
from spinejax.training import parallel, step

# Network -> config, its argument, and fields that make the network small.
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chasppraunet": ("phantom_to_real", "paper_size,debug", dict(widths=(4, 8))),
    "unet": ("unet", "debug", dict(widths=(4, 8))),
    "dtvnet": ("dtvnet", "debug", dict(widths=(4, 8))),
    "saunet": ("saunet", "debug", dict(depths=(1, 1), growth=4)),
    "multiresunet": ("multiresunet", "debug", dict(widths=(4, 8))),
    "resunet": ("unet", "debug", dict(name="resunet", widths=(4, 8))),
    "mlpnn": ("mlpnn", "debug", {}),
    "opconvnet": ("opconvnet", "debug", {}),
    "vgg": ("opconvnet", "net=vgg,debug", {}),
    "resnet": ("opconvnet", "net=resnet,debug", {}),
    "densenet": ("opconvnet", "net=densenet,debug", dict(depths=(1, 1))),
    "padbn": ("opconvnet", "net=padbn,debug", {}),
    "mobilenet": (
        "opconvnet",
        "debug",
        dict(name="mobilenet", widths=(8, 8), depths=(1, 1), expansions=(1, 2), strides=(1, 2)),
    ),
    "mrunet": (
        "mrunet",
        "debug",
        dict(
            widths=(8, 8), depths=(1, 1), expansions=(1, 2), strides=(1, 2), decoder_widths=(8, 8)
        ),
    ),
    "unet3d": ("unet3d", "debug", dict(widths=(4, 8))),
    "vnet": ("vnet", "debug", dict(widths=(4, 8), depths=(1, 1))),
    "spineparsenet": (
        "spineparsenet",
        "debug",
        dict(widths=(4, 4, 8, 8), exit_widths=(8,), refine_widths=()),
    ),
}

COLUMNS = {
    "convolutions": "convolution",
    "matrix products": "dot_general",
    "transposes": "transpose",
    "loops": "while",
    "host calls": "host call",
}
"""Heading -> operation of StableHLO; for the last, see `operations`."""

_HOST = re.compile(r"custom_call @\S*callback|stablehlo\.(infeed|outfeed|send|recv)\b")


def program(config: Any) -> str:
    """Return the training step of a config, as one device runs it, in StableHLO for CUDA."""
    task = build_task(config, axis_name=parallel.AXIS)
    update, optimizer = step.from_config(config, task, total_steps=1, steps_per_epoch=1)
    one = parallel.Parallel("shard_map", tuple(jax.devices()[:1]))
    mapped = one.map(update, sharded=(False, False), donate=True)
    return for_cuda(mapped, *step.arguments(config, task, optimizer))


def for_cuda(jitted: Any, *args: Any) -> str:
    """Return a jitted function in StableHLO for CUDA; `args` are arrays or their shapes."""
    return jitted.trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def operations(text: str) -> Counter[str]:
    """Return how often each operation stands in a program.

    A function counts as often as it is called, the body of a loop once. "host call" stands for what
    waits for the host: callbacks, infeed, outfeed, send and receive.
    """
    own: dict[str, Counter[str]] = {}
    calls: dict[str, Counter[str]] = {}
    name = ""
    for line in text.splitlines():
        if head := re.match(r"\s*func\.func .*?@([^\s(]+)\(", line):
            name = head[1]
            own[name], calls[name] = Counter(), Counter()
        elif name:
            own[name].update(re.findall(r"stablehlo\.(\w+)", line))
            own[name]["host call"] += bool(_HOST.search(line))
            calls[name].update(re.findall(r"call @([^\s(]+)\(", line))

    @cache
    def total(name: str) -> Counter[str]:
        found = Counter(own[name])
        for called, times in calls[name].items():
            if called in own:  # the others are custom calls
                found.update({kind: times * count for kind, count in total(called).items()})
        return found

    return total("main")


def small(name: str) -> Any:
    """Return the config of a row, which reads scans."""
    module, argument, fields = NETWORKS[name]
    config = import_module(f"spinejax.configs.{module}").get_config(argument)
    if "name" in fields:
        config.model = type(config.model)()
    config.model.update(fields)
    config.data.source = "verse"
    return config


@cache
def program_of(name: str) -> str:
    """Return the program of a row."""
    return program(small(name))


def row(name: str) -> tuple[str, ...]:
    """Return a row of the table."""
    counts = operations(program_of(name))
    return (name, *(str(counts[kind]) for kind in COLUMNS.values()))


HEAD = ("network", *COLUMNS)


class Loops(NamedTuple):
    """Loops of a program, those within others included; the body of each counts once."""

    open: int  # how many end on a condition that depends on data
    fixed: int  # how many make a fixed number of turns


def loops(jaxpr: Any) -> Loops:
    """Count the loops of a closed jaxpr."""
    opened = fixed = 0
    for equation in jaxpr.eqns:
        opened += equation.primitive.name == "while"
        fixed += equation.primitive.name == "scan"
        for inner in jaxprs_in_params(equation.params):
            more = loops(inner)
            opened, fixed = opened + more.open, fixed + more.fixed
    return Loops(opened, fixed)


DRAWN_FOR = {"in steps, as on CPUs": "cpu", "at once, as on GPUs": "gpu"}
PHANTOM_HEAD = ("8 slices of 80 x 128", "loops that end on data", "loops of fixed length")


def phantom_row(form: str) -> tuple[str, ...]:
    """Return a row of the second table; `form` is a key of DRAWN_FOR."""
    stream = online.of_slices(phantom_to_real.get_config())
    positions = jax.ShapeDtypeStruct((8,), "int32")
    with once.drawn_for(DRAWN_FOR[form]):
        draw = jax.make_jaxpr(lambda key, at: stream.draw(key, at))
        found = loops(draw(jax.eval_shape(lambda: jax.random.key(0)), positions).jaxpr)
    return (form, str(found.open), str(found.fixed))


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = HEAD) -> str:
    """Return the table in Markdown."""
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Print the table."""
    print(f"jax {jax.__version__}")
    print(table([row(name) for name in NETWORKS]))
    print()
    print(table([phantom_row(form) for form in DRAWN_FOR], PHANTOM_HEAD))
    return 0


if __name__ == "__main__":
    sys.exit(main())
