"""What the documents promise is there: commands, flags, files, checksums."""

import hashlib
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SCRIPTS

from derain.sets import RAIN12, RAIN100H, RAIN100L
from networks import load_network
from SSIM import psnr_y

DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md")]


def commands(document: Path) -> list[list[str]]:
    """The python commands of a document and of our scripts' docstrings, comments cut off."""
    pattern = r"(?<![-\w])python3? ((?:-m [\w.]+|[\w/.]+\.py)\b[^\n`|&#()]*)"
    return [shlex.split(command) for command in re.findall(pattern, document.read_text())]


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, *(ROOT / s for s in SCRIPTS)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_commands_exist_and_take_their_flags(
    document: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, *arguments in commands(document):
        if command == "-m":
            command, *arguments = arguments
            if command in ("pytest", "venv"):
                continue
            command = command.replace(".", "/") + ".py"  # a module of ours is a file of ours
        assert (ROOT / command).is_file(), f"{document}: {command} does not exist"
        monkeypatch.setattr(sys, "argv", [command, "--help"])
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / command), run_name="__main__")
        shown = capsys.readouterr().out
        for flag in (a for a in arguments if a.startswith("--")):
            assert re.search(rf"{flag}\b", shown), f"{document}: {command} has no {flag}"


def test_commands_were_found() -> None:
    assert len(commands(ROOT / "README.md")) > 5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_within_the_repository_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document}: {target}"


@pytest.mark.parametrize("name", ["Rain100H", "Rain100L", "real"])
def test_the_committed_weights_are_the_documented_ones(name: str) -> None:
    path = ROOT / "logs" / name / "net_latest.pth"
    assert hashlib.sha256(path.read_bytes()).hexdigest() in (ROOT / "logs/README.md").read_text()
    assert sum(p.numel() for p in load_network(path).parameters()) == 387_495


def test_documents_quote_the_known_scores() -> None:
    readme, logs = ((ROOT / path).read_text() for path in ("README.md", "logs/README.md"))
    (ours,) = re.findall(r"^\| DARGNet, released images.*$", logs, re.M)
    for test_set in (RAIN100H, RAIN100L, RAIN12):
        psnr, ssim, _ = test_set.reference
        assert f"{psnr:.2f} / {ssim:.3f}".replace("/ 0", "/ ") in ours
        assert re.search(rf"\| {test_set.name} \| {psnr:.3f} / {ssim:.4f} \|", readme)
        script = (ROOT / f"test_{test_set.name}.py").read_text()
        assert f"{psnr:.3f} dB / {ssim:.4f}" in script


@pytest.mark.parametrize("name", ["Rain100H", "Rain100L"])
def test_the_readme_quotes_our_weights_scores(name: str) -> None:
    """README.md and logs/README.md give the same scores for our weights."""
    readme, logs = ((ROOT / path).read_text() for path in ("README.md", "logs/README.md"))
    (row,) = re.findall(rf"^\| {name} \|.*\| ([\d.*]+ / [\d.*]+) \|$", readme, re.M)
    (ours,) = re.findall(r"^\| \*\*ours\*\*.*$", logs, re.M)
    assert row.replace("*", "") in ours


def test_the_steps_in_python_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, first_section, *_ = (ROOT / "examples/README.md").read_text().split("\n## ")
    lines = [line[4:] for line in first_section.splitlines() if line.startswith("    ")]
    steps: dict[str, Any] = {}
    exec("\n".join(lines), steps)
    before, after = (psnr_y(steps[name], steps["clean"]) for name in ("rainy", "derained"))
    assert after > before + 6
