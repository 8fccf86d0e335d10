"""Stages of the pipeline, in order: what each reads, what its result depends on, what it writes.

`omniforcing pipeline --write` makes dvc.yaml, and that of every preset, of this list. Code is not
listed: each stage depends on a digest of what its module in omniforcing.pipeline.stages imports.
"""

from omniforcing.codec.config import Source
from omniforcing.pipeline.declaration import StageSpec

FOUNDATION = "src/omniforcing/assets/pocket"


def kept(part: str) -> tuple[str, ...]:
    """Files of a kept part of the foundation.

    Its manifest holds the sha256 of every weight file.
    """
    names = (f"{part}.json", f"{part}.curves.csv", f"{part}/manifest.json")
    return tuple(f"{FOUNDATION}/{name}" for name in names)


STAGES = (
    StageSpec(
        "clips",
        "Make the synthetic clips, or list a folder of real ones with their captions.",
        keys=("seed", "clips"),
    ),
    StageSpec(
        "shards",
        "Conform the clips (24 fps, size, length, 16 kHz stereo), cut them and pack them into "
        "WebDataset tars.",
        reads=("clips",),
        keys=("clips", "shards"),
    ),
    StageSpec(
        "codec",
        "Train, take or load the video VAE, the audio VAE, the vocoder and the text encoder, and "
        "measure reconstructions.",
        reads=("shards",),
        keys=("seed", "codec"),
        files=kept("codec"),
        curves=True,
    ),
    StageSpec(
        "latents",
        "Encode every clip into normalised latents, and every caption into text features.",
        reads=("shards", "codec"),
        keys=("clips", "latents"),
    ),
    StageSpec(
        "teacher",
        "Train, take or load the bidirectional teacher (flow matching on the latents).",
        reads=("latents", "codec"),
        keys=("seed", "teacher"),
        files=kept("teacher"),
        curves=True,
        trains=lambda config: config.teacher.source is Source.train,
    ),
    StageSpec(
        "bidirectional_dmd",
        "Stage I. Distil the teacher into few steps "
        "with distribution matching, still bidirectional.",
        reads=("latents", "teacher"),
        keys=("seed", "student.sigmas", "bidirectional_dmd"),
        curves=True,
        trains=lambda config: config.bidirectional_dmd.optim.steps > 0,
    ),
    StageSpec(
        "trajectories",
        "Run the Stage I student (or the teacher) and keep its ODE trajectories for Stage II.",
        reads=("latents", "teacher", "bidirectional_dmd"),
        keys=("seed", "student.sigmas", "teacher", "trajectories"),
    ),
    StageSpec(
        "causal_ode",
        "Stage II. Regress the trajectories with block-causal visibility and sinks.",
        reads=("trajectories", "teacher", "bidirectional_dmd"),
        keys=("seed", "student", "causal_ode"),
        curves=True,
        trains=lambda config: config.causal_ode.optim.steps > 0,
    ),
    StageSpec(
        "self_forcing",
        "Stage III. Distribution matching on the student's own rollouts from its K/V cache.",
        reads=("latents", "teacher", "bidirectional_dmd", "causal_ode"),
        keys=("seed", "student", "self_forcing"),
        curves=True,
        trains=lambda config: config.self_forcing.optim.steps > 0,
    ),
    StageSpec(
        "evaluate",
        "Measure every model on the same held-out captions and seeds, and write the page.",
        reads=(
            *("shards", "latents", "codec", "teacher"),
            *("bidirectional_dmd", "causal_ode", "self_forcing"),
        ),
        keys=("seed", "clips", "teacher", "student", "evaluate"),
        writes="evaluation",
        files=tuple(f"src/omniforcing/evaluation/{name}.html" for name in ("base", "page")),
    ),
    StageSpec(
        "export",
        "Write the artifact that streams on its own, and stream a first clip from it.",
        reads=("codec", "self_forcing", "evaluate"),
        keys=("seed", "student", "export"),
        writes="artifact",
    ),
    StageSpec(
        "causal_decoder",
        "Adapt a non-causal video decoder, as LTX-2's, to a causal one that streams exactly; it "
        "regresses the other's pictures.",
        reads=("shards", "latents", "codec"),
        keys=("seed", "causal_decoder"),
        curves=True,
        optional=True,
    ),
)
