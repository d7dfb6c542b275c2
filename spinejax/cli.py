"""The command line `spinejax COMMAND --flag=value`: runs a command, prints errors in one line."""

import atexit
import gc
import importlib
import io
import logging
import os
import sys
import threading
import traceback
import warnings
from typing import cast

from absl import flags

from spinejax import __version__, compile_cache
from spinejax.commands import parsing
from spinejax.errors import InputError, describe, describe_os_error, did_you_mean, is_disk_full

COMMANDS = (
    "phantom",
    "doctor",
    "convert",
    "prepare",
    "summarize",
    "config",
    "inspect",
    "train",
    "search",
    "evaluate",
    "predict",
    "calibrate",
    "export",
    "score",
    "report",
    "sweep",
)
"""Names of the modules in spinejax/commands, in the order of the help."""


def command(name: str) -> parsing.Command:
    """Return the module of a command.

    Raises:
        InputError: there is no such command.
    """
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f"; choose from {', '.join(COMMANDS)}"
        raise InputError(f"unknown command {name!r}{hint}")
    return cast(parsing.Command, importlib.import_module(f"spinejax.commands.{name}"))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 1
    if words[0] == "--version":
        print(__version__)
        return 0
    name = words.pop(0)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold undecodable bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    _show_messages()
    if not sys.warnoptions:  # unless python -W or PYTHONWARNINGS asks for warnings
        warnings.filterwarnings("ignore")
    # Grain reads absl's global flags, which this command line does not use.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    if not _is_one_of_several(words):
        compile_cache.switch_on()
    # To trace a program makes many small objects, which stay. Python would look through all of them
    # again and again for garbage, a good part of the time until a network runs.
    gc.set_threshold(50_000, 10, 5)
    # At its end the process gives all its memory back, whatever Python would find.
    atexit.register(gc.freeze)
    try:
        module = command(name)
        values = parsing.parse(name, module, words)
        status = 0 if values is None else module.run(values)
        sys.stdout.flush()
        return status
    except InputError as error:
        message = str(error)
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # the status of a program that SIGPIPE ends
    except ValueError as error:
        if "JAX" not in str(error):  # jax refuses a variable as soon as it is imported
            raise
        message = f"{error}; correct or unset this environment variable"
    except OSError as error:
        message = describe_os_error(error)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print(f"spinejax {name}: error: {' '.join(message.split())}", file=sys.stderr)
    return 1


def _is_one_of_several(words: list[str]) -> bool:
    """Return whether this process may be one of several that train one run.

    GPUs of several processes tune their programs together: none of them may skip that because its
    folder holds the program already.
    """
    tasks = os.environ.get("SLURM_NTASKS", "1").strip()
    return tasks not in ("", "0", "1") or any(w.startswith("--num_processes") for w in words)


class _Messages(logging.Handler):
    """Prints the package's log: information on standard output, warnings on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            print(record.getMessage(), flush=True)
        else:
            # One line, whatever characters a file's name holds.
            text = " ".join(record.getMessage().split())
            print(f"{record.levelname}: {text}", file=sys.stderr)


def _show_messages() -> None:
    root = logging.getLogger()
    if not any(isinstance(handler, _Messages) for handler in root.handlers):
        root.addHandler(_Messages())
    debug = bool(os.environ.get("SPINEJAX_DEBUG"))
    logging.getLogger("spinejax").setLevel(logging.DEBUG if debug else logging.INFO)
    # Orbax logs what its threads raise; the same errors end the training.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _thread_failed
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _thread_failed


def _thread_failed(failure: "threading.ExceptHookArgs | sys.UnraisableHookArgs") -> None:
    """Show what a background thread or an exit function raised, in one line.

    Two errors are shown in debug logs only, because the main thread reports their cause: a full
    disk, which each writing thread meets, and coroutines that Orbax drops when its event loop is
    closed.
    """
    error = failure.exc_value
    if error is None or isinstance(error, SystemExit):
        return
    logger = logging.getLogger("spinejax")
    dropped = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    shown = logging.DEBUG if dropped or is_disk_full(error) else logging.WARNING
    logger.log(shown, "in the background: %s", describe(error))
    logger.debug("%s", "".join(traceback.format_exception(error)))


def _usage() -> str:
    rows = "\n".join(f"  {name:<10} {command(name).HELP}" for name in COMMANDS)
    return (
        f"spinejax {__version__}: spine CT segmentation in JAX\n\n"
        f"usage: spinejax COMMAND [--flag=value ...]\n\n{rows}\n\n"
        "spinejax predict CT.nii.gz -o out names the vertebrae in a CT; no training is needed.\n"
        "spinejax help COMMAND lists the flags of a command."
    )
