"""What is known of each test set, and the published scores. Everything else quotes this file.

Scores are PSNR in dB and SSIM under the PReNet protocol (Y channel, mean over the set), unless named otherwise.
"""

from dataclasses import dataclass, make_dataclass

from derain.cli import run_script

Scores = tuple[float, float]  # PSNR (dB) and SSIM


@dataclass(frozen=True)
class TestSet:
    """A test set, and the scores of the images that DARGNet's authors released for it."""

    __test__ = False  # pytest would take it for a test

    name: str
    rain: str  # heavy or light: which weights it is tested with, and the stand-in if it is missing
    pairs: int
    input_psnr_y: float  # mean of the rainy images
    reference: tuple[float, float, float | None] | None  # authors' released images [measured]: psnr_y, ssim_y, psnr_rgb
    unseen: tuple[int, ...] = ()  # images whose background is not in RainTrainL, where some are


RAIN100H = TestSet("Rain100H", "heavy", 100, 13.556, (29.8105, 0.90521, 28.384))
RAIN100L = TestSet("Rain100L", "light", 100, 26.9007, (37.7139, 0.98053, 36.284))
RAIN12 = TestSet("Rain12", "light", 12, 30.143, (36.822, 0.9618, None), unseen=(9, 10, 11, 12))
TEST_SETS = {s.name: s for s in (RAIN100H, RAIN100L, RAIN12)}


@dataclass(frozen=True)
class Method:
    """A method trained on the strict 1,254 pairs of RainTrainH or the 200 of RainTrainL, and its scores per set."""

    name: str
    scores: dict[str, Scores]
    parameters: int | None = None
    source: str = "published with PReNet (CVPR 2019)"


def _method(name: str, heavy: Scores, light: Scores, rain12: Scores, *more: int | str | None) -> Method:
    return Method(name, {"Rain100H": heavy, "Rain100L": light, "Rain12": rain12}, *more)  # type: ignore[arg-type]


PUBLISHED = (
    _method("GMM", (15.05, 0.425), (28.66, 0.865), (32.02, 0.855)),
    _method("DDN", (21.92, 0.764), (32.16, 0.936), (31.78, 0.900)),
    _method("SIRR", (22.47, 0.716), (32.37, 0.926), (34.02, 0.935)),
    _method("JORDER", (26.54, 0.835), (36.61, 0.974), (33.92, 0.953)),
    _method("PRN", (28.07, 0.884), (36.99, 0.977), (36.62, 0.952)),
    _method("PReNet_r", (28.98, 0.892), (37.10, 0.977), (36.69, 0.962)),
    _method("PReNet", (29.46, 0.899), (37.48, 0.979), (36.66, 0.961), 168963),
    _method("BRN (ICASSP)", (29.58, 0.902), (37.82, 0.981), (36.70, 0.959), None, "published with BRN (ICASSP 2020)"),
    _method("BRN (TIP)", (30.47, 0.913), (38.16, 0.982), (36.74, 0.959), 412518, "published with BRN (TIP 2020)"),
)
DARGNET = Method(
    "DARGNet, released images",
    {s.name: s.reference[:2] for s in TEST_SETS.values() if s.reference},
    387495,
    source="measured here from the images that the authors released",
)


def known_scores() -> list[str]:
    """Return a Markdown line of scores for each known method, lowest on Rain100H first."""
    lines, names = [], ("Rain100H", "Rain100L", "Rain12")
    for method in sorted((*PUBLISHED, DARGNET), key=lambda method: method.scores["Rain100H"]):
        cells = [f"{psnr:.2f} / {f'{ssim:.3f}'[1:]}" for psnr, ssim in (method.scores[name] for name in names)]
        parameters = f"{method.parameters:,}" if method.parameters else ""
        lines.append(f"| {method.name} | {parameters} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    run_script(lambda _settings: print("\n".join(known_scores())), make_dataclass("Settings", ())(), __doc__)
