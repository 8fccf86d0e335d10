"""Commands ``omniforcing inspect`` and ``omniforcing weights``: show and convert files."""

from __future__ import annotations

from pathlib import Path

import click

from omniforcing.cli.command import Command, Group
from omniforcing.core.console import visible


@click.command(
    cls=Command,
    examples=(
        "omniforcing inspect data/pocket/shards",
        "omniforcing inspect data/pocket/latents --out latents.png",
        "omniforcing inspect data/pocket/shards --flags flags.json",
        "omniforcing inspect clip.mp4",
        "omniforcing inspect clip.mp4 --detector detector.pt:$SHA256",
    ),
)
@click.argument(
    "path",
    type=click.Path(path_type=Path),
    help="Output folder of the stage shards, latents or trajectories; or a clip.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Contact sheet to write.  [default: <folder>.png beside the folder]",
)
@click.option(
    "--flags",
    type=click.Path(path_type=Path),
    help="Of shards: also look for clips that are out of sync, silent, frozen or clipped next to "
    "the others, and list them in this file, which the key shards.flags takes.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="With --flags: YAML file that names CLIP and CLAP by path and sha256; clips that do not "
    "fit their caption are flagged too.",
)
@click.option(
    "--detector",
    metavar="FILE:SHA256",
    help="Of a clip: look for a watermark in its sound with a TorchScript program that you trust.",
)
def inspect(
    path: Path, out: Path | None, flags: Path | None, weights: Path | None, detector: str | None
) -> None:
    """Show what a folder of shards or latents holds, or what a clip says of how it was made.

    Every sample of a folder is read and checked; a few are drawn on a contact sheet.
    """
    if path.is_file():
        if out or flags or weights:
            raise click.UsageError(
                f"{path} is a clip and --out, --flags and --weights are for folders; "
                "leave them out",
                click.get_current_context(),
            )
        from omniforcing.media.provenance import describe

        watermark = ""
        if detector:
            from omniforcing.streaming.watermark.detector import detect

            watermark = f"\n  {detect(path, detector)}"
        print(visible(describe(path) + watermark))
        return
    if detector and path.is_dir():
        raise click.UsageError(
            f"--detector is for a clip and {path} is none; name the clip",
            click.get_current_context(),
        )
    from omniforcing.data.inspect import inspect_folder

    out = out or Path(f"{path.absolute()}.png")
    print(visible(inspect_folder(path, out)))
    print(f"\ncontact sheet: {out}")
    if flags:
        from omniforcing.evaluation.measures.encoders.weights import Weights
        from omniforcing.evaluation.measures.flags import flag_shards

        found = flag_shards(path, Weights.read(weights) if weights else None)
        found.save(flags)
        print(visible(f"\n{found.table()}\nlist: {flags}"))


weights = Group(
    "weights",
    help="Inspect LTX-2 weights, or convert them between formats.",
    examples=(
        "omniforcing weights inspect weights/LTX-2/transformer",
        "omniforcing weights import ltx-2-19b-dev.safetensors weights/LTX-2",
    ),
)
_source = click.argument(
    "source",
    type=click.Path(path_type=Path),
    help="A diffusers folder, Lightricks' .safetensors or folder of them, or OmniForcing's index.",
)
_destination = click.argument(
    "destination", type=click.Path(path_type=Path), help="The folder to write, a new one."
)
_rope = click.option(
    "--rope",
    type=click.Choice(["split", "interleaved"]),
    help="Exchange the RoPE convention on the way.",
)


@weights.command(
    "inspect",
    examples=(
        "omniforcing weights inspect weights/LTX-2/transformer",
        "omniforcing weights inspect ltx-2-19b-dev.safetensors --values --json",
    ),
)
@_source
@click.option(
    "--values", is_flag=True, help="Also read every tensor; stop at the first NaN or infinity."
)
@click.option("--json", "as_json", is_flag=True, help="Print json.")
def inspect_weights(source: Path, values: bool, as_json: bool) -> None:
    """Describe weights from their headers alone."""
    from omniforcing.model.weights import command

    command.inspect(source, values, as_json)


@weights.command(
    "import",
    examples=(
        "omniforcing weights import ltx-2-19b-dev.safetensors weights/LTX-2 --text-encoder gemma-3",
        "omniforcing weights import LTX-2.5/ weights/LTX-2.5 --text-encoder gemma-4 --copy",
        "omniforcing weights import omniforcing/ student --transformer-only --rope split",
    ),
)
@_source
@_destination
@click.option(
    "--with",
    "more",
    type=click.Path(path_type=Path),
    multiple=True,
    help="File or folder with parts that SOURCE lacks. May be repeated.",
)
@click.option(
    "--text-encoder",
    "text",
    type=click.Path(path_type=Path),
    help="Gemma and its tokenizer, a folder or LTX-2.5's file; by default SOURCE's own.",
)
@click.option("--copy", is_flag=True, help="Copy the text encoder instead of linking to it.")
@click.option(
    "--transformer-only", "alone", is_flag=True, help="Leave codecs and text encoder out."
)
@_rope
def import_weights(
    source: Path,
    destination: Path,
    more: tuple[Path, ...],
    text: Path | None,
    copy: bool,
    alone: bool,
    rope: str | None,
) -> None:
    """Write the whole model as a folder in diffusers format, bit for bit."""
    from omniforcing.model.weights import command

    if alone:
        command.convert(source, destination, "import", rope)
    else:
        command.import_whole(source, destination, more, text, copy, rope)
    _written(destination)


@weights.command(
    "export",
    examples=(
        "omniforcing weights export data/ltx2/self_forcing exported",
        "omniforcing weights export weights/LTX-2/transformer original --rope interleaved",
    ),
)
@_source
@_destination
@_rope
def export_weights(source: Path, destination: Path, rope: str | None) -> None:
    """Write the weights in Lightricks' format, bit for bit; a whole folder's codecs go along."""
    from omniforcing.model.weights import command

    command.export(source, destination, rope)
    _written(destination)


@weights.command(
    "merge-lora",
    examples=(
        "omniforcing weights merge-lora weights/LTX-2 weights/anime --lora style.safetensors:0.8",
        "omniforcing weights merge-lora data/ltx2/self_forcing out --lora a.safetensors "
        "--lora b.safetensors:0.5",
    ),
)
@_source
@_destination
@click.option(
    "--lora",
    "loras",
    multiple=True,
    required=True,
    metavar="FILE[:SCALE]",
    help="LoRA to merge, in the names of diffusers or ComfyUI; may be repeated.",
)
def merge_lora(source: Path, destination: Path, loras: tuple[str, ...]) -> None:
    """Write the weights in diffusers format, with LoRAs merged into them."""
    from omniforcing.model.weights import command

    command.merge_loras(source, destination, loras)
    _written(destination)


@weights.command(
    "export-lora",
    examples=(
        "omniforcing weights export-lora data/ltx2/self_forcing student.safetensors",
        "omniforcing weights export-lora data/ltx2/self_forcing comfy.safetensors "
        "--names lightricks",
    ),
)
@click.argument(
    "source",
    type=click.Path(path_type=Path),
    help="The folder of a stage that trained an adapter, or a LoRA's file.",
)
@click.argument("destination", type=click.Path(path_type=Path), help="The file to write.")
@click.option(
    "--names",
    type=click.Choice(["diffusers", "lightricks"]),
    default="diffusers",
    help="Whose names the layers get; ComfyUI reads Lightricks'.",
)
def export_lora(source: Path, destination: Path, names: str) -> None:
    """Write an adapter as a LoRA that diffusers or ComfyUI opens."""
    from omniforcing.model.weights import command

    layers = command.export_lora(source, destination, names)
    print(f"{destination}: {layers} layers, in the names of {names}")


def _written(destination: Path) -> None:
    print(f"{destination}: written whole, every value finite")
