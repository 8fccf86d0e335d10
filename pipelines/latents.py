"""Stage latents: every clip as normalised latents, every caption as text features. A killed run keeps its finished shards."""

from omniforcing.codec.codec import Codec
from omniforcing.data.encode import encode_shards
from omniforcing.ops.stage import Stage, stage_main
from omniforcing.text.encoder import TextEncoder


def run(stage: Stage) -> None:
    """Encode, check the counts and publish."""
    codec, device = stage.input("codec"), stage.config.trainer.device
    with stage.publish() as folder:
        found = encode_shards(
            stage.input("shards"),
            folder,
            stage.work,
            Codec.load(codec, device),
            TextEncoder.load(codec / "text", device),
            stage.config.latents.batch,
        )
    stage.metrics(found)


if __name__ == "__main__":
    stage_main("latents", run)
