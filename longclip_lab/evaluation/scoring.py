"""One model on tasks: the conditions of a score, known beforehand, and the score."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from longclip_lab.errors import SEED
from longclip_lab.evaluation.contamination import contamination
from longclip_lab.evaluation.lengths import at_length
from longclip_lab.evaluation.picture_features import PictureFeatures
from longclip_lab.evaluation.protocols import RetrievalTask, Task
from longclip_lab.evaluation.records import Record, data_hash, model_hash
from longclip_lab.evaluation.similarities import SimilarityName, get_similarity
from longclip_lab.models import Clip
from longclip_lab.models.pictures import how_read

BOOTSTRAP = 1000


class Scorer:
    """A model that is scored on tasks at any number of tokens.

    Its weights are hashed once, and pictures that tasks share are encoded once; with `features`, a
    folder, also across calls.
    """

    def __init__(
        self,
        clip: Clip,
        similarity: SimilarityName | None = None,
        features: Path | None = None,
        seed: int = 0,
        progress: bool = False,
    ):
        SEED.check("The seed of the bootstrap", seed)
        self.clip, self.seed, self.progress = clip, seed, progress
        self.how = get_similarity(clip, similarity)
        self.weights = model_hash(clip.model)
        self.features = PictureFeatures(clip, self.how, features, progress)

    def conditions(self, task: Task, length: int | None = None) -> dict[str, Any]:
        """Everything a record says that is known before the score is; fields of `Record`.

        Raises LabError for a `length` that the model does not read.
        """
        texts, clip = task.encoded(), self.clip
        seen = contamination(clip.card, task.facts.get("contaminated_by", ()))
        return {
            "protocol": task.name,
            "model": clip.name,
            "model_hash": self.weights,
            "data_hash": data_hash(task.images, texts, task.source),
            "counts": {
                "images": len(task.images),
                "texts": len(texts),
                "different texts": len(set(texts)),
            },
            "skipped": task.skipped,
            "settings": {
                "bootstrap": BOOTSTRAP,
                "context_length": clip.context_length,
                "similarity": self.how.name,
                **({"images": read} if (read := how_read(task.images)) else {}),
                **task.settings(),
            },
            "source": task.source,
            "seed": self.seed,
            "device": str(clip.device),
            "dtype": str(next(clip.model.parameters()).dtype).removeprefix("torch."),
            "length": at_length(clip, length).context_length,
            "resolution": clip.image_size,
            "partial": task.partial,
            "facts": task.facts,
            "contamination": seen.to_dict() if seen else {},
        }

    def record(self, task: Task, length: int | None = None) -> Record:
        """The score with its conditions; texts are cut at `length` tokens."""
        start = time.perf_counter()
        reader = at_length(self.clip, length)
        score = self._retrieved if isinstance(task, RetrievalTask) else self._classified
        scores, num_truncated = score(reader, task)
        conditions = self.conditions(task, length)
        return Record(
            **conditions,
            scores=scores.scores(),
            num_truncated=num_truncated,
            share_truncated=num_truncated / conditions["counts"]["texts"],
            seconds=time.perf_counter() - start,
        )

    def _retrieved(self, reader: Any, task: Task) -> tuple[Any, int]:
        texts = self.how.encode_texts(reader, task.texts, progress=self.progress)
        scores = self.how.retrieval(
            self.features(task.images),
            texts,
            task.image_of_text,
            tie=task.settings()["tie"],
            bootstrap=BOOTSTRAP,
            seed=self.seed,
        )
        return scores, texts.num_truncated

    def _classified(self, reader: Any, task: Task) -> tuple[Any, int]:
        classes = self.how.class_features(reader, task.class_names, task.templates, self.progress)
        features = self.features(task.images)
        scores = self.how.classify(features, classes, task.labels, BOOTSTRAP, self.seed)
        return scores, classes.num_truncated
