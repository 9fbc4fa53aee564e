"""The audit from end to end: verdicts on models of a known answer, controls, and what is kept."""

import json
import runpy
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ttest_1samp

from diffusers_xai import MixtureDenoiser, XAIPipeline, cli
from diffusers_xai.audit import AuditResult, Explainer, audit, testing
from diffusers_xai.audit import run as audit_run
from diffusers_xai.audit.permuting import permuted
from diffusers_xai.audit.result import table_of
from diffusers_xai.audit.scale import CHECKPOINT, CLOSED_FORM, FAILS, PASSES, TOLD
from tests.audit.models import MASK, gaussian, images, mixture, network
from tests.processes import environment


EDGES, GRADIENT = "edges of the image (control)", "gradient"
QUICK = {"mask": MASK, "seeds": range(8), "timesteps": (400,), "steps": 5, "null_samples": 40}
LABELS = {"label": 0, "other_label": 1}


def noise(case):
    """An explanation that explains nothing."""
    return torch.rand(case.sample.shape[0], *case.mask.shape, generator=torch.Generator().manual_seed(case.timestep))


@pytest.fixture(scope="module")
def of_mixture(tmp_path_factory):
    out = tmp_path_factory.mktemp("audit") / "out"
    return audit(mixture(), [noise], out=out, **QUICK, **LABELS), out


def test_the_exact_gradient_passes_and_edges_and_noise_fail(of_mixture):
    result, _ = of_mixture
    assert result.broken_controls == []
    assert result.is_faithful(CHECKPOINT, GRADIENT)
    assert result.is_faithful(CLOSED_FORM, GRADIENT)
    assert result.verdict(CHECKPOINT, EDGES, "randomised") == FAILS
    assert not result.is_faithful(CHECKPOINT, EDGES)
    assert not result.is_faithful(CHECKPOINT, "noise")
    assert result.verdict(CHECKPOINT, "noise", "sensitivity") == TOLD
    assert result.verdict(CHECKPOINT, "label sensitivity", "closed_form") == PASSES
    assert result.verdict(CHECKPOINT, "label sensitivity", "infidelity") == PASSES
    assert result.verdict(CHECKPOINT, "label sensitivity", "permuted") == PASSES
    assert result.verdict(CHECKPOINT, GRADIENT, "permuted") == TOLD
    assert result.verdict(CHECKPOINT, "label sensitivity", "deletion") is None
    values = result.table.set_index(["model", "explanation", "test"])["value"]
    assert values[CHECKPOINT, GRADIENT, "closed_form"] < 1e-6
    assert values[CHECKPOINT, EDGES, "randomised"] == pytest.approx(1)
    assert values[CHECKPOINT, EDGES, "sensitivity"] == 0


def test_the_table_says_how_sure_it_is(of_mixture):
    result, out = of_mixture
    kept = json.loads((out / "scores.json").read_text())
    (tests,) = [row["tests"] for row in kept["rows"] if (row["model"], row["explanation"]) == (CHECKPOINT, GRADIENT)]
    values, reference = (np.mean(tests["deletion"][part], 0) for part in ("values", "reference"))
    row = result.table.query("model == @CHECKPOINT and explanation == @GRADIENT and test == 'deletion'").iloc[0]
    interval = ttest_1samp(values, 0).confidence_interval()
    assert (row["value"], row["reference"]) == pytest.approx((values.mean(), reference.mean()))
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert row["p"] == pytest.approx(ttest_1samp(values - reference, 0, alternative="greater").pvalue)
    assert row["q"] >= row["p"]
    assert row["seeds"] == 8


def test_other_settings_need_another_folder(of_mixture):
    _, out = of_mixture
    with pytest.raises(FileExistsError, match="audit of these settings, got one that differs in `steps`"):
        audit(mixture(), [noise], out=out, **{**QUICK, "steps": 6}, **LABELS)


def test_files_and_figure(of_mixture, tmp_path):
    result, _ = of_mixture
    written = {path.name for path in result.save(tmp_path)}
    assert {"audit.json", "audit.md", "audit.html", "audit.parquet"} == written
    facts = json.loads((tmp_path / "audit.json").read_text())
    assert facts["broken_controls"] == []
    assert len(facts["table"]) == len(result.table) == len(pd.read_parquet(tmp_path / "audit.parquet"))
    text = (tmp_path / "audit.md").read_text()
    assert "Both controls hold." in text
    assert "| gradient, on the closed form (control) | yes |" in text
    figure = result.plot()
    heatmap = figure.data[0]
    assert "<b>gradient</b>" in heatmap.y
    assert len(heatmap.y) == len(result.table.groupby(["model", "explanation"]))
    assert heatmap.z.shape == (len(heatmap.y), len(heatmap.x))
    row, column = (
        list(heatmap.y).index(EDGES),
        [i for i, x in enumerate(heatmap.x) if x.startswith("other weights")][0],
    )
    assert heatmap.text[row][column].startswith("<b>1.00</b>")


def test_broken_controls_are_told():
    def scores(edge, error):
        rows = {}
        for model, name, value in ((CHECKPOINT, EDGES, edge), (CLOSED_FORM, GRADIENT, 0.1)):
            rows[model, name] = {
                "randomised": {"values": [[value, value + 0.01, value + 0.02]]},
                "infidelity": {"values": [[0.1, 0.11, 0.12]], "reference": [[0.8, 0.9, 0.85]]},
                "deletion": {"values": [[0.9, 0.91, 0.92]], "reference": [[0.5, 0.5, 0.55]]},
                "closed_form": {"values": [[error, error, error]]},
            }
        return AuditResult(table_of(rows), pd.DataFrame(), {}, GRADIENT, EDGES).broken_controls

    assert scores(0.98, 0.0) == []
    assert scores(0.1, 0.0) == [f"{EDGES} passes, although it does not look at the model"]
    assert scores(0.98, 0.5) == ["the gradient does not pass on the closed form, where it is the exact one"]


def test_a_test_that_cannot_be_made_says_why():
    made = {"randomised": {"values": [[0.1, 0.12, 0.11]]}}
    without = {**made, "closed_form": {"values": [], "why_not": "no closed form has attention"}}
    table = table_of({(CHECKPOINT, "A_t"): without, (CHECKPOINT, "other"): made})
    result = AuditResult(table, pd.DataFrame(columns=["model", "explanation"]), {}, GRADIENT, EDGES)
    assert "3 seeds: too few for a sure interval." in result.to_markdown()
    assert result.plot().layout.title.text == "3 seeds: too few for a sure interval."
    assert "| none: no closed form has attention |" in result.to_markdown()
    assert result.verdict(CHECKPOINT, "A_t", "closed_form") == TOLD
    assert table["p"].notna().sum() == 2  # and is none of those that are corrected for
    exact = {"values": [[0.0, 0.0, 0.0]]}
    wide = {"values": [[0.09, 0.05, 0.12]]}  # whose mean is below the limit, and its interval not
    closed = table_of({(CHECKPOINT, name): {**made, "closed_form": error} for name, error in
                       (("A_t", exact), ("other", wide))})  # fmt: skip
    assert closed.query("test == 'closed_form'")["verdict"].tolist() == [PASSES, FAILS]
    assert closed.query("test == 'closed_form'")[["p", "q"]].isna().all(axis=None)
    assert closed.query("test != 'closed_form'")["q"].tolist() == table["q"].dropna().tolist()
    assert result.plot().data[0].text[0][1] == "none"


def test_a_network_without_labels_or_layers():
    result = audit(gaussian(), **QUICK)
    assert result.broken_controls == []
    assert set(result.table["explanation"]) == {
        "gradient",
        "gradient energy of x̂_0",
        "gradient energy of ε",
        "nearness to the region (no model)",
        EDGES,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [1, 2]}, "three different seeds"),
        ({"seeds": [1, 2, 2, 3]}, "three different seeds"),
        ({"label": None}, "`label` and `other_label`"),
        ({"other_label": 0}, "two different labels"),
        ({"mask": np.ones((8, 8), bool)}, r"got \(8, 8\)"),
        ({"explainers": [lambda case: torch.zeros(2)]}, r"<lambda>: expected a tensor of shape \(1, 16, 16\)"),
        ({"explainers": [lambda case: torch.zeros(1, 20, 16)]}, r"fewer rows and columns.*got \(1, 20, 16\)"),
        ({"explainers": [lambda case: noise(case) / 0]}, "expected finite values, got NaN or infinity"),
        ({"explainers": [lambda case: noise(case) - 2]}, r"without negative values, got one down to -\d"),
        ({"timesteps": [600, 1000]}, "timesteps in 0..999"),
        ({"explainers": [noise, Explainer("noise", noise)]}, "different names"),
        ({"permuted": mixture()}, "got the model itself"),
        ({"permuted": network()}, "class_name 'ConvNextUNet2DModel' instead of 'MixtureDenoiser'"),
    ],
)
def test_bad_requests_are_refused_before_the_work(options, message, monkeypatch):
    monkeypatch.setattr(audit_run, "draw_samples", lambda *args, **kwargs: pytest.fail("the work began"))
    with pytest.raises(ValueError, match=message):
        audit(mixture(), **{**QUICK, **LABELS, **options})


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(FileExistsError, match="new folder or an audit"):
        audit(mixture(), out=tmp_path, **QUICK, **LABELS)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


OWN = """
import os, signal

_replace, _moves = os.replace, []

def _die(source, target):
    _moves.append(target)
    if len(_moves) == 5:  # the samples and some scores are there, the next are written and not yet in their place
        os.kill(os.getpid(), signal.SIGKILL)
    _replace(source, target)

if "DIE" in os.environ:
    os.replace = _die

def constant(case):
    return case.images.abs().mean(1)
"""


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill(tmp_path, capsys, monkeypatch):
    mixture().save_pretrained(tmp_path / "model")
    XAIPipeline(
        MixtureDenoiser.fit(images().double(), permuted([i % 2 for i in range(80)]), mixture().scheduler, rank=20),
        mixture().scheduler,
    ).save_pretrained(tmp_path / "permuted")
    (tmp_path / "own.py").write_text(OWN)
    out = tmp_path / "out"
    arguments = [
        "audit",
        *("--checkpoint", str(tmp_path / "model"), "--permuted", str(tmp_path / "permuted"), "--out", str(out)),
        *("--seeds", "3", "--steps", "4", "--timesteps", "300", "--label", "0", "--other-label", "1"),
    ]
    wrong = f"{tmp_path / 'own.py'}:missing"
    assert cli.main([*arguments, "--explainer", wrong]) == 2
    assert "got 'missing', available constant" in capsys.readouterr().err
    assert not out.exists()

    arguments += ["--explainer", f"{tmp_path / 'own.py'}:constant"]
    command = [sys.executable, "-m", "diffusers_xai.cli", *arguments]
    killed = subprocess.run(command, env=environment(DIE="1"), check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "audit.json").exists()
    kept = [row["explanation"] for row in json.loads((out / "scores.json").read_text())["rows"]]
    assert kept == [GRADIENT, EDGES]
    graded, grade = [], testing.Tests.grade
    monkeypatch.setattr(
        testing.Tests, "grade", lambda *args, **beyond: graded.append(args[1].name) or grade(*args, **beyond)
    )
    capsys.readouterr()
    code = cli.main(arguments)
    printed = capsys.readouterr()
    names = [line.rsplit("/", 1)[-1] for line in printed.out.splitlines()]
    assert names == ["audit.json", "audit.md", "audit.html", "audit.parquet"]
    assert {path.name for path in out.iterdir()} == {*names, "scores.json", "samples.safetensors"}
    assert EDGES not in graded
    assert graded[-1] == "constant"
    facts = json.loads((out / "audit.json").read_text())
    # What the controls come to on so small a sample, the command says.
    assert code == (2 if facts["broken_controls"] else 0)
    assert ("cannot be trusted" if facts["broken_controls"] else "Both controls hold") in printed.err

    whole = audit(
        XAIPipeline.from_pretrained(tmp_path / "model"),
        [runpy.run_path(str(tmp_path / "own.py"))["constant"]],
        permuted=XAIPipeline.from_pretrained(tmp_path / "permuted"),
        seeds=range(3),
        steps=4,
        timesteps=[300],
        **LABELS,
    )
    columns = ["model", "explanation", "test", "value", "low", "high", "reference", "verdict"]
    pd.testing.assert_frame_equal(pd.DataFrame(facts["table"])[columns], whole.table[columns], rtol=1e-3, atol=1e-6)
