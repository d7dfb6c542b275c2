"""What a run wrote for TensorBoard."""

import struct
from pathlib import Path

from tensorboardX.proto import event_pb2


def events(workdir: Path) -> list[event_pb2.Event]:
    """Return the events in the folder of a run, file by file."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event()
            event.ParseFromString(data[at + 12 : at + 12 + length])
            found.append(event)
            at += 16 + length
    return found


def pictures(workdir: Path) -> dict[tuple[int, str], bytes]:
    """Return the pictures, in PNG, by step and name."""
    values = [(event.step, value) for event in events(workdir) for value in event.summary.value]
    return {
        (step, value.tag): value.image.encoded_image_string
        for step, value in values
        if value.HasField("image")
    }
