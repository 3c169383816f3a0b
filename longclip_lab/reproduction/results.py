"""What the quickstart found, as values: everything the table, the report and the JSON file show."""

from __future__ import annotations

from dataclasses import dataclass, field

from longclip_lab.evaluation import Interval
from longclip_lab.probing import CounterfactualProbe, EffectiveLength


@dataclass(frozen=True)
class ModelRow:
    """One line of the table: a model and its scores (shares from 0 to 1, 95% intervals).

    `stage` is "start", "stretched" or "fine-tuned". R@1 is given both ways (picture to text,
    text to picture) for long and short captions. `truncated` counts the long test captions that
    the model cannot hold. `variance_kept` is the share of the image features' variance that PCM's
    components held, averaged over the steps (None where there is no PCM). `seconds` is the time
    of fine-tuning.
    """

    label: str
    stage: str
    long_i2t: Interval
    long_t2i: Interval
    short_i2t: Interval
    short_t2i: Interval
    kind: Interval
    colour: Interval
    truncated: int
    seconds: float = 0.0
    variance_kept: float | None = None
    recipe: dict = field(default_factory=dict)


COLUMNS = ("long_i2t", "long_t2i", "short_i2t", "short_t2i", "kind", "colour")


@dataclass(frozen=True)
class QuickstartResults:
    """The first lesson's findings.

    `before` and `after` are the effective length of the bundled model and of the fine-tuned one
    named by `best`; `probes` maps model labels to counterfactual probes; `facts` holds seed,
    sizes, seconds, versions, threads and the commit.
    """

    rows: list[ModelRow]
    before: EffectiveLength
    after: EffectiveLength
    probes: dict[str, CounterfactualProbe]
    best: str
    facts: dict

    def table(self):
        """A DataFrame: one model a row, scores in percent."""
        import pandas as pd

        records = [
            {
                "stage": row.stage,
                "model": row.label,
                **{name: 100 * getattr(row, name).value for name in COLUMNS},
                "truncated": row.truncated,
                "variance kept": row.variance_kept,
                "seconds": row.seconds,
            }
            for row in self.rows
        ]
        return pd.DataFrame(records)

    def to_dict(self) -> dict:
        """JSON-able: rows with intervals, the probes and the facts."""
        return {
            "facts": self.facts,
            "rows": [
                {
                    "label": row.label,
                    "stage": row.stage,
                    **{name: getattr(row, name).to_dict() for name in COLUMNS},
                    "truncated": row.truncated,
                    "seconds": row.seconds,
                    "variance_kept": row.variance_kept,
                    "recipe": row.recipe,
                }
                for row in self.rows
            ],
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "probes": {label: probe.to_dict() for label, probe in self.probes.items()},
            "best": self.best,
        }
