"""One night in a process of its own, to be killed or to race: `python -m tests.pipelines.retraining.night '<json>'`.

The JSON names the scene ("folder", "registry", "name", "at") and the recipe's `retrain` ("how").
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

from cluster import apart
from pipelines.engine.lease import Busy
from tests.pipelines.retraining.scene import PlayedClock, Scene


def main(told: dict) -> None:
    """Run the night and print what its slot ended as, or who is at work."""
    clock = PlayedClock(datetime.datetime.fromisoformat(told["at"]))
    scene = Scene(Path(told["folder"]), Path(told["registry"]), told["name"], clock=clock)
    try:
        slot = scene.night(**told["how"])
        print(f"slot {slot.number} {slot.outcome}")
    except Busy as busy:
        print(f"busy: {busy}")
    finally:
        apart.end()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
