"""Runs an early-exit network with ONNX Runtime and NumPy alone.

from run import EarlyExit
network = EarlyExit("FOLDER")
probabilities, exits = network(images)  # [N, C, H, W], float32; [N, K] and [N]
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime


class EarlyExit:
    """Images leave at the first classifier that is sure; each file runs for those that go on."""

    def __init__(self, folder=".", **options):
        self.about = json.loads((Path(folder) / "sidebranch.json").read_text(encoding="utf-8"))["early_exit"]
        options.setdefault("providers", onnxruntime.get_available_providers())
        files = [Path(folder) / each["file"] for each in self.about["exits"]]
        self.sessions = [onnxruntime.InferenceSession(file, **options) for file in files]

    def __call__(self, images):
        going, known, seen, found = np.arange(len(images)), {"images": images}, [], None
        exits = np.zeros(len(images), dtype=np.int64)
        for place, (about, session) in enumerate(zip(self.about["exits"], self.sessions)):  # noqa: B905
            logits, *features = session.run(None, {name: known[name] for name in about["takes"]})
            known.update(zip(about["gives"], features))  # noqa: B905
            scores = np.exp((logits - logits.max(1, keepdims=True)) / about["temperature"])
            seen.append(scores / scores.sum(1, keepdims=True))
            answers = np.mean(seen, 0) if self.about["averaged"] else seen[-1]
            leaves = self.sureness(answers, seen) >= about["threshold"]
            found = np.zeros((len(images), answers.shape[1]), np.float32) if found is None else found
            found[going[leaves]], exits[going[leaves]] = answers[leaves], place
            going, seen = going[~leaves], [each[~leaves] for each in seen]
            known = {name: each[~leaves] for name, each in known.items()}
            if not len(going):
                break
        return found, exits

    def sureness(self, answers, seen):
        first = np.sort(answers, 1)[:, ::-1]
        if self.about["measure"] == "confidence":
            return first[:, 0]
        if self.about["measure"] == "margin":
            return first[:, 0] - first[:, 1]
        return np.min([each[np.arange(len(answers)), answers.argmax(1)] for each in seen], 0)
