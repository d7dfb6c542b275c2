"""The log of a run: the bar, metrics.jsonl and its rewinding."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from spinejax.training import log


def test_the_bar_has_a_speed_at_logged_steps_too(tmp_path):
    shown = []

    @contextmanager
    def recorded(title, total, unit):
        shown.append((title, total, unit))
        yield SimpleNamespace(advance=lambda *step: shown.append(step))

    options = dict(start_step=0, total_steps=4, batch_size=8, progress=recorded)
    with log.RunLog(tmp_path, **options) as writer:
        for step in range(1, 5):
            writer.train(step, {"loss": 1.0, "dice": 0.5})
            writer.advance(step)
    assert shown[0] == ("training", 4, "step") and [step[0] for step in shown[1:]] == [1] * 4
    assert "slices/s" in shown[-1][1] and " 0.0 slices/s" not in shown[-1][1]
    assert all(line["samples_per_s"] > 0 for line in log.read_metrics(tmp_path))


def test_only_records_are_read_from_a_damaged_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert log.read_metrics(tmp_path) == []
    path.write_bytes(b"")
    assert log.read_metrics(tmp_path) == []
    whole = b'{"step": 1, "kind": "train", "loss": 0.5}'
    path.write_bytes(
        b"\n".join(
            [b"\x00\xff\xfe", whole, b"[1, 2]", b'{"kind": "val"}', b"3", b'{"step": 2, "ki']
        )
    )
    assert log.read_metrics(tmp_path) == [{"step": 1, "kind": "train", "loss": 0.5}]


LINES = [
    '{"step": 1, "kind": "train"}',
    '{"step": 1, "kind": "val"}',
    '{"step": 2, "kind": "train"}',
]


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [
        ("\n".join(LINES) + "\n", 3, ""),
        ("\n".join(LINES) + '\n{"step": 2, "ki', 3, ""),  # cut off by a kill
        ("\n".join(LINES) + '\n{"st', 3, ""),
        ("\n".join([LINES[0], "x", *LINES[1:]]) + "\n", 3, "line 2 is damaged"),
        ("\n".join([LINES[0], "", *LINES[1:]]) + "\n", 3, "line 2 is damaged"),
        ("\n".join(2 * LINES) + "\n", 3, "line 4 and 2 more are damaged"),
        ("[1, 2]", 0, "line 1 is damaged"),
        ("{}", 0, "line 1 is damaged"),
        ("1e999", 0, "line 1 is damaged"),
        ("[" * 100_000, 0, "line 1 is damaged"),
        ("\x00\x01binary", 0, "line 1 is damaged"),
        ('{"step": 1, "kind": "train", "x": NaN}\n', 0, "line 1 is damaged"),
        ('{"step": 1, "kind": "train", "x": null}\n', 0, "line 1 is damaged"),
        ('{"step": 1, "kind": "<b>"}\n', 0, "line 1 is damaged"),
        ('{"step": -1, "kind": "val"}\n', 0, "line 1 is damaged"),
        (f'{{"step": {10**400}, "kind": "val"}}\n', 0, "line 1 is damaged"),
    ],
)
def test_damaged_lines_of_a_log_are_named(tmp_path, caplog, text, count, words):
    (tmp_path / "metrics.jsonl").write_text(text)
    assert len(log.read_metrics(tmp_path)) == count
    assert words in caplog.text and bool(words) == bool(caplog.messages)


def test_metrics_are_rewound_to_the_step_and_its_evaluation(tmp_path):
    lines = [(1, "train"), (2, "train"), (2, "val"), (3, "train")]
    text = "".join(json.dumps({"step": s, "kind": k}) + "\n" for s, k in lines)
    for evaluated, kept in ((True, lines[:3]), (False, lines[:2])):
        (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "ki')
        log.rewind(tmp_path, 2, evaluated=evaluated)
        assert [(x["step"], x["kind"]) for x in log.read_metrics(tmp_path)] == kept
