"""What tests of the command line share."""

from pathlib import Path

from spinejax.cli import main

ROOT = Path(__file__).resolve().parents[2]


def snapshot(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")} if folder.exists() else set()


def fails(capsys, arguments: list[str], *words: str) -> str:
    """Run, expect the contract of bad input, and return the message."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if ": error: " in line]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]
