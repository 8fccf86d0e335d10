"""Clips of a set that look wrong next to the others: out of sync, silent, frozen, clipped.

Thresholds are learnt from the set: in a set of slide shows a still picture is nothing special. A
flag is a reason to look, not a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from omniforcing.core.files import write_json
from omniforcing.core.layout import FPS
from omniforcing.data.rejects import FLAGS_SCHEMA
from omniforcing.data.shards import read_shards
from omniforcing.evaluation.measures.base import Measure, Observed
from omniforcing.evaluation.measures.clips import Clip
from omniforcing.evaluation.measures.curves import RATE, Array, correlogram
from omniforcing.evaluation.measures.encoders.similarity import ClapTextAudio, ClipTextVideo
from omniforcing.evaluation.measures.encoders.weights import Weights
from omniforcing.evaluation.measures.picture import FrozenShare
from omniforcing.evaluation.measures.sound import ClippedShare, SilentShare

LONGEST = 0.5  # seconds of the largest offset that is looked for
NEAR = 0.08  # seconds around the set's own offset within which a clip is in sync
OTHERS = 4  # other clips whose sound is tried with a picture, to know what chance looks like
FEWEST = 8  # clips from which a threshold can be learnt
FAR_OUT = 5.0  # robust deviations from the median at which a clip is an outlier
MOST = 0.9  # of the way from the median share to a whole: what lies above is always an outlier
SPREAD = 1.4826  # median absolute deviation of a normal distribution -> its deviation


@dataclass(frozen=True)
class Rule:
    """A threshold on one figure of a clip.

    Attributes:
        flag: name of the fault.
        limit: the threshold.
        above: whether what lies above it is flagged, else what lies below.
        about: how the figure is told.
    """

    flag: str
    limit: float
    above: bool
    about: str

    def broken_by(self, value: float) -> bool:
        """Whether a clip with this figure is flagged."""
        return value > self.limit if self.above else value < self.limit


@dataclass(frozen=True)
class Flagged:
    """A clip that looks wrong.

    Attributes:
        key: of its sample.
        name: of its file.
        cut: number of the cut in that file.
        why: every fault, with its figure.
    """

    key: str
    name: str
    cut: int
    why: str


@dataclass
class SetOfClips:
    """What is needed of a set's clips to find those that look wrong.

    Attributes:
        measures: measures of one clip.
        figures: for each measure and ``sync``, the clips' figures, NaN where there is none; made by
            ``rules``.
        observed: what the measures took from the clips.
        curves: curves of motion and of onsets of each clip.
    """

    measures: Sequence[Measure]
    figures: dict[str, list[float]] = field(default_factory=dict)
    observed: Observed = field(default_factory=Observed)
    curves: list[tuple[Array, Array]] = field(default_factory=list)

    shares: ClassVar[dict[str, tuple[str, float]]] = {
        # Name of the measure -> name of the fault, and the least share that is one.
        FrozenShare.name: ("frozen", 0.2),
        SilentShare.name: ("silent", 0.5),
        ClippedShare.name: ("clipped", 0.001),
    }

    def add(self, clip: Clip) -> None:
        """Look at a clip."""
        self.observed.add(clip, self.measures)
        self.curves.append((clip.motion, clip.onsets))

    def rules(self) -> tuple[dict[str, Rule], list[str]]:
        """Learn the thresholds.

        Returns:
            Rules by the name of their figure, and why there is none for a fault.
        """
        rules, why = {}, []
        for measure in self.measures:
            seen = self.observed.seen.get(measure.name, [])
            self.figures[measure.name] = [np.nan if value is None else value for value in seen]
            values = np.array([value for value in seen if value is not None])
            fault = measure.missing or self.observed.failed.get(measure.name, "")
            if fault or len(values) < FEWEST:
                why.append(fault or f"{measure.name}: {len(values)} clips have it")
                continue
            rules[measure.name] = _outliers(measure.name, values, self.shares)
        own, chance = self._sync()
        self.figures["sync"] = own.tolist()
        judged, others = own[~np.isnan(own)], chance[~np.isnan(chance)]
        if len(judged) < FEWEST:
            why.append(f"out of sync: only {len(judged)} clips move and sound")
        elif np.median(judged) <= np.percentile(others, 95):
            why.append("out of sync: picture and sound agree no better than with other clips'")
        else:
            rules["sync"] = Rule("out of sync", float(np.median(others)), False, "agreement")
        return rules, why

    def _sync(self) -> tuple[Array, Array]:
        """Agreement of each clip at the set's offset less that at any other, and by chance."""
        count = len(self.curves)
        own = np.stack([correlogram(*curves, LONGEST) for curves in self.curves])
        middle = own.shape[1] // 2
        at = int(own.mean(0).argmax())
        # Sound that is late by more than half of what is looked for is no habit of a set.
        at = at if abs(at - middle) <= middle // 2 else middle
        chance = []
        for index, (motion, _) in enumerate(self.curves):
            for step in range(1, min(OTHERS, count - 1) + 1):
                onsets = self.curves[(index + step) % count][1]
                length = min(len(motion) / FPS, len(onsets) / RATE)
                parts = motion[: round(length * FPS)], onsets[: round(length * RATE)]
                chance.append(_agreement(correlogram(*parts, LONGEST), at))
        return np.array([_agreement(row, at) for row in own]), np.array(chance)


def _agreement(correlation: Array, at: int) -> float:
    """Best correlation near a shift, less the best elsewhere; NaN where a curve is flat."""
    if not correlation.any():
        return np.nan
    reach = round(NEAR * RATE)
    near = np.zeros(len(correlation), bool)
    near[max(0, at - reach) : at + reach + 1] = True
    return float(correlation[near].max() - correlation[~near].max())


def _outliers(name: str, values: Array, shares: dict[str, tuple[str, float]]) -> Rule:
    middle = float(np.median(values))
    deviation = SPREAD * float(np.median(np.abs(values - middle)))
    if name in shares:
        flag, least = shares[name]
        limit = max(least, middle + FAR_OUT * deviation)
        # In a set that is often silent, one that always is must still be found.
        return Rule(flag, min(limit, middle + MOST * (1 - middle)), True, name)
    return Rule("mismatched to its caption", middle - FAR_OUT * deviation, False, name)


@dataclass(frozen=True)
class Flags:
    """Flagged clips of a shard folder.

    Attributes:
        folder: output of stage shards.
        clips: number of clips that were looked at.
        rules: thresholds that were learnt, by figure.
        unknown: why a fault could not be looked for.
        flagged: the clips that look wrong.
    """

    folder: Path
    clips: int
    rules: dict[str, Rule]
    unknown: list[str]
    flagged: list[Flagged]

    def save(self, file: Path) -> None:
        """Write the list that ``shards.flags`` takes."""
        content = {
            "schema": FLAGS_SCHEMA,
            "folder": str(self.folder),
            "clips": self.clips,
            "rules": {name: vars(rule) for name, rule in self.rules.items()},
            "flags": [vars(clip) for clip in self.flagged],
        }
        write_json(file, content)

    def table(self) -> str:
        """The thresholds and the flagged clips, as text."""
        lines = [f"flagged: {len(self.flagged)} of {self.clips} clips"]
        for rule in self.rules.values():
            side = "above" if rule.above else "below"
            lines.append(f"  {rule.flag}: {rule.about} {side} {rule.limit:.3g}")
        lines += [f"  not looked for: {why}" for why in self.unknown]
        lines += [f"{clip.key}  {clip.name}, cut {clip.cut}: {clip.why}" for clip in self.flagged]
        return "\n".join(lines)


def flag_shards(folder: Path, weights: Weights | None = None) -> Flags:
    """Find the clips of a shard folder that look wrong next to the others.

    Args:
        folder: output of stage shards.
        weights: weights of CLIP and CLAP, with which captions are looked at too.

    Raises:
        OmniForcingError: if the folder is not an output of stage shards, or is damaged.
    """
    measures: list[Measure] = [FrozenShare(), SilentShare(), ClippedShare()]
    if weights:
        measures += [ClipTextVideo(weights), ClapTextAudio(weights)]
    looked, places = SetOfClips(measures), []
    for sample in read_shards(folder):
        looked.add(Clip(sample["key"], sample["media"], sample["caption"]))
        info: dict[str, Any] = sample["provenance"]
        places.append((sample["key"], info["name"], info["cut"]))
    rules, unknown = looked.rules()
    flagged = []
    for index, place in enumerate(places):
        faults = []
        for name, rule in rules.items():
            value = looked.figures[name][index]
            if rule.broken_by(value):
                faults.append(f"{rule.flag} ({rule.about} {value:.3g}, limit {rule.limit:.3g})")
        if faults:
            flagged.append(Flagged(*place, "; ".join(faults)))
    return Flags(folder, len(places), rules, unknown, flagged)
