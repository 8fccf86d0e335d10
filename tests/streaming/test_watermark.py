"""A watermark in the sound: in pieces as over the whole, in every kind of stream, by what file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from omniforcing.core.files import sha256_file
from omniforcing.streaming.watermark.resampling import resample
from omniforcing.streaming.watermark.watermark import Watermark, absolute
from tests.support.refusals import refuses
from tests.support.tiny_watermarks import Causal, Centred, Recurrent, saved, seeded

# Blocks of a second, a last one that ends within a unit, and one without a new sample.
PIECES = (480, 16000, 16000, 7000, 0, 25160, 333)


def sizes(rate: int = 16000) -> list[int]:
    """Samples of the pieces at a rate."""
    return [piece * rate // 16000 for piece in PIECES]


def sound(rate: int = 16000) -> Tensor:
    """Stereo noise ``[1, 2, N]`` as long as the pieces at a rate."""
    generator = torch.Generator().manual_seed(1)
    return 0.1 * torch.randn(1, 2, sum(sizes(rate)), generator=generator)


def in_pieces(watermark: Watermark, whole: Tensor, rate: int = 16000) -> list[Tensor]:
    """What a stream gives out, piece by piece."""
    pieces = whole.split(sizes(rate), 2)
    marked = watermark.begin()
    return [marked.push(piece, piece is pieces[-1]) for piece in pieces]


@pytest.fixture
def named(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    return saved(seeded(request.param), tmp_path / "program.pt")


@pytest.mark.parametrize(("named", "most"), [(Causal, 1e-6), (Recurrent, 0.02)], indirect=["named"])
def test_a_causal_watermark_in_pieces_is_that_of_the_whole_sound(named: str, most: float) -> None:
    watermark, whole = Watermark(named, 16000), sound()
    pieces = in_pieces(watermark, whole)
    module = torch.jit.load(named.rpartition(":")[0])
    with torch.inference_mode():
        padded = nn.functional.pad(whole.mean(1, keepdim=True), (0, -whole.shape[2] % 320))
        expected = module(padded)[..., : whole.shape[2]]
    added = torch.cat(pieces, 2) - whole
    assert expected.abs().max() > 0.005
    error = (added - expected).abs().max()
    assert error < most * expected.abs().max() + 1e-7
    alone = [watermark.begin().push(x, last=True) - x for x in whole.split(PIECES, 2)]
    assert (torch.cat(alone, 2) - expected).abs().max() > 20 * error, "it needs the context"
    given = torch.tensor([piece.shape[2] for piece in pieces]).cumsum(0)
    taken = torch.tensor(PIECES).cumsum(0)
    assert (taken - given).max() < 320, "sound waits for less than 20 ms"
    assert given[-1] == taken[-1]


@pytest.mark.parametrize("rate", [24000, 44100, 48000])
@pytest.mark.parametrize("named", [Causal], indirect=True)
def test_at_another_rate_pieces_are_still_the_whole(named: str, rate: int) -> None:
    watermark, whole = Watermark(named, rate), sound(rate)
    pieces = in_pieces(watermark, whole, rate)
    module = torch.jit.load(named.rpartition(":")[0])
    with torch.inference_mode():
        padded = nn.functional.pad(whole.mean(1, keepdim=True), (0, -whole.shape[2] % (rate // 50)))
        expected = resample(module(resample(padded, rate, 16000)), 16000, rate)
    expected = expected[..., : whole.shape[2]]
    assert expected.abs().max() > 0.005
    assert (torch.cat(pieces, 2) - whole - expected).abs().max() < 1e-6
    given = torch.tensor([piece.shape[2] for piece in pieces]).cumsum(0)
    assert (torch.tensor(sizes(rate)).cumsum(0) - given).max() < 0.06 * rate


@pytest.mark.parametrize("rate", [24000, 48000])
def test_a_tone_keeps_its_place_and_level_at_another_rate(rate: int) -> None:
    for source, target in ((16000, rate), (rate, 16000)):
        times = [torch.arange(r // 2, dtype=torch.float64) / r for r in (source, target)]
        before, after = (torch.sin(2 * torch.pi * 1000 * t).float() for t in times)
        found = resample(before[None, None], source, target)[0, 0]
        inside = slice(target // 20, -target // 20)
        assert (found - after)[inside].abs().max() < 2e-3


@pytest.mark.extended
@pytest.mark.parametrize("named", [Centred], indirect=True)
def test_a_watermark_that_looks_ahead_leaves_no_click_louder_than_itself(named: str) -> None:
    whole = sound()[..., : sum(PIECES[:4])]
    pieces = whole.split(PIECES[:4], 2)
    marked = Watermark(named, 16000).begin()
    added = torch.cat([marked.push(x, x is pieces[-1]) for x in pieces], 2) - whole
    with torch.inference_mode():
        expected = torch.jit.load(named.rpartition(":")[0])(whole.mean(1, keepdim=True))[0]
    loudest, error = expected.abs().max(), (added[0] - expected).abs().max(0).values
    borders = torch.tensor(PIECES[:3]).cumsum(0) // 320 * 320
    away = torch.ones(len(error), dtype=torch.bool)
    for border in borders:
        away[max(0, border - 800) : border] = False  # what follows was not known yet
    assert error[away].max() < 1e-6 < error[~away].max()
    assert added.abs().max() < 1.2 * loudest
    steps = (added[..., borders] - added[..., borders - 1]).abs()
    assert steps.max() < 2 * loudest


@pytest.mark.parametrize("named", [Recurrent], indirect=True)
def test_sound_with_a_watermark_goes_on_from_its_state_bit_for_bit(named: str) -> None:
    for rate in (16000, 48000):
        watermark, whole = Watermark(named, rate), sound(rate)
        pieces = whole.split(sizes(rate), 2)
        marked = watermark.begin()
        for piece in pieces[:3]:
            marked.push(piece)
        again = watermark.begin()
        again.restore({name: x.clone() for name, x in marked.state().items()})
        for piece in pieces[3:]:
            last = piece is pieces[-1]
            assert torch.equal(marked.push(piece, last), again.push(piece, last))


@pytest.mark.parametrize("named", [Causal], indirect=True)
def test_loud_sound_stays_within_its_range(named: str) -> None:
    marked = Watermark(named, 16000).begin().push(torch.ones(1, 2, 5000), last=True)
    assert marked.shape == (1, 2, 5000) and marked.abs().max() <= 1


class Shorter(nn.Module):
    def forward(self, samples: Tensor) -> Tensor:
        return samples[..., 1:]


class Double(nn.Module):
    def forward(self, samples: Tensor) -> Tensor:
        return samples.double()


class Endless(nn.Module):
    def forward(self, samples: Tensor) -> Tensor:
        return samples / 0


class Pair(nn.Module):
    def forward(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        return samples, samples


class TwoInputs(nn.Module):
    def forward(self, samples: Tensor, message: Tensor) -> Tensor:
        return samples + message


class Drawing(nn.Module):
    def forward(self, samples: Tensor) -> Tensor:
        return 0.01 * torch.randn_like(samples)


class InPlace(nn.Module):
    """Writes its watermark, which it draws, into the sound that it is given."""

    def forward(self, samples: Tensor) -> Tensor:
        return samples.mul_(0).add_(0.01 * torch.randn_like(samples))


class DrawingInSilence(nn.Module):
    def forward(self, samples: Tensor) -> Tensor:
        silent = (samples[..., -1:] == 0).float()
        return silent * 0.01 * torch.randn_like(samples)


class Remembering(nn.Module):
    """Counts its calls, which shows in no watermark yet."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, samples: Tensor) -> Tensor:
        self.calls += 1
        return 0.01 * samples * torch.lt(self.calls, 100).float()


class Sparse(nn.Module):
    def forward(self, samples: Tensor) -> Tensor:
        return (0.01 * samples).to_sparse()


class Printing(nn.Module):
    def forward(self, samples: Tensor) -> Tensor:
        print("working")
        return 0.01 * samples


class WithTheSound(nn.Module):
    def forward(self, samples: Tensor) -> Tensor:
        return 1.01 * samples


class NoForward(nn.Module):
    @torch.jit.export
    def mark(self, samples: Tensor) -> Tensor:
        return 0.01 * samples


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, samples: Tensor) -> Tensor:
        self.calls += 1
        return 0.01 * self.calls * samples


@pytest.mark.parametrize(
    ("kind", "code", "fact"),
    [
        (Shorter, "program.wrong-signature", "[1, 1, 31999]"),
        (Double, "program.wrong-signature", "torch.float64"),
        (Pair, "program.wrong-signature", "tuple"),
        (TwoInputs, "program.wrong-signature", "message"),
        (Endless, "program.not-finite", "program.pt"),
        (Drawing, "program.varies", "program.pt"),
        (Counting, "program.varies", "program.pt"),
        (InPlace, "program.varies", "program.pt"),
        (DrawingInSilence, "program.varies", "program.pt"),
        (Remembering, "program.varies", "program.pt"),
        (Sparse, "program.wrong-signature", "torch.sparse"),
        (Printing, "program.prints", "program.pt"),
        (NoForward, "program.wrong-signature", "forward"),
        (WithTheSound, "program.too-loud", "program.pt"),
    ],
)
def test_a_program_that_gives_no_watermark_is_one_sentence(
    kind: type[nn.Module], code: str, fact: str, tmp_path: Path
) -> None:
    with refuses(code, tmp_path / "program.pt", fact):
        Watermark(saved(kind(), tmp_path / "program.pt"), 16000)


def test_a_program_that_fails_on_some_sound_says_so_in_the_stream(tmp_path: Path) -> None:
    class Soft(nn.Module):
        def forward(self, samples: Tensor) -> Tensor:
            return 0.01 * samples / torch.lt(samples.abs().max(), 0.9).float()

    marked = Watermark(saved(Soft(), tmp_path / "program.pt"), 16000).begin()
    with refuses("program.not-finite", tmp_path / "program.pt"):
        marked.push(torch.ones(1, 2, 16000))
    with refuses("program.other-rate", "11025"):
        Watermark(saved(seeded(Causal), tmp_path / "program.pt"), 11025)


def test_only_the_torchscript_file_of_that_sha256_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "program.pt"
    named = saved(seeded(Causal), file)
    other = "0" * 64
    with refuses("program.other-sha256", file, other, sha256_file(file)):
        Watermark(f"{file}:{other}", 16000)
    with refuses("file.missing", tmp_path / "nowhere.pt"):
        Watermark(f"{tmp_path / 'nowhere.pt'}:{other}", 16000)
    for unreadable in (tmp_path, tmp_path / ("n" * 300)):
        with refuses("file.unreadable", unreadable):
            Watermark(f"{unreadable}:{other}", 16000)
    for malformed in (str(file), f"{file}:", f":{other}", f"{file}:{other[1:]}"):
        with refuses("option.malformed", "--watermark", "FILE:SHA256"):
            Watermark(malformed, 16000)
    Watermark(named[:-64] + named[-64:].upper(), 16000)
    assert absolute(f"program.pt:{other}") == f"{Path.cwd() / 'program.pt'}:{other}"
    (tmp_path / "text.pt").write_text("no program")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "pickle.pt")
    np.savez(tmp_path / "arrays.npz", np.zeros(2))
    torch.export.save(
        torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "exported.pt2"
    )
    for name in ("text.pt", "pickle.pt", "arrays.npz", "exported.pt2"):
        with refuses("program.not-torchscript", name):
            Watermark(f"{tmp_path / name}:{sha256_file(tmp_path / name)}", 16000)
