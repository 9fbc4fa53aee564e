"""A ZeroGPU Space, simulated: what computes goes through `spaces.GPU`, in a process of its own."""

import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import gradio as gr
import pytest
import torch
from diffusers import DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.app import models, server, settings
from tests.app.handlers import handler
from tests.tiny import convnext_unet


ROOT = Path(__file__).parents[2]


class FakeSpaces(types.ModuleType):
    """Decorates as `spaces` does.

    What goes to the worker and comes back is pickled, as between processes; errors that are not Gradio's lose their
    text; a generator that is closed is told to the worker.
    """

    def __init__(self):
        super().__init__("spaces")
        self.durations, self.calls, self.closed = [], [], 0

    def GPU(self, task=None, *, duration=60):
        assert task is None
        self.durations.append(duration)

        def decorate(function):
            def on_worker(*args):
                self.calls.append(pickle.loads(pickle.dumps(args)))
                run = function(*self.calls[-1])
                try:
                    for item in run:
                        yield pickle.loads(pickle.dumps(item))
                except GeneratorExit:
                    run.close()
                    self.closed += 1
                    raise
                except gr.Error:
                    raise
                except Exception as error:
                    raise gr.Error(type(error).__name__, title="ZeroGPU worker error") from None

            return on_worker

        return decorate


@pytest.fixture
def fake(monkeypatch):
    spaces = FakeSpaces()
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    monkeypatch.setenv("SPACE_ID", "user/faces")
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    return spaces


@pytest.fixture
def demo(fake):
    model = models.Model("tiny", XAIPipeline(convnext_unet(), DDPMScheduler()))
    return model, server.build(
        {"tiny": model}, settings.Limits(confirm_seconds=600), steps=4, every=2, gradients=False
    )


def test_sampling_goes_through_the_decorated_function(fake, demo):
    model, blocks = demo
    sample, visitor, values = handler(blocks, "sample")
    *_, (image, told) = sample(*values)
    assert told.startswith("Done: **Smiling**, seed 7, 4 steps")
    assert image.shape == (320, 320, 3)
    assert fake.durations == [60]  # of one decorated function, below the 180 s of a server of one's own
    assert [(task.__name__, name) for task, name, *_ in fake.calls] == [("plan", "tiny"), ("sample", "tiny")]
    expected = model.pipe(
        fake.calls[-1][2].label, num_inference_steps=4, generator=torch.Generator().manual_seed(7), output_type="pt"
    )
    shown = torch.from_numpy(visitor.result.profile["final_sample"].values).div(2).add(0.5).clamp(0, 1)
    assert torch.equal(shown, expected.images)


def test_the_sweep_goes_through_it_too(fake, demo):
    sweep, _, values = handler(demo[1], "sweep")
    *_, last = sweep(*values)
    shown = {component.elem_id or component.label: value for component, value in last.items()}
    assert "seeds 7 to 9" in shown["sweep-shown"]
    assert shown["Predetermination"]["value"].data
    assert len(shown["sweep-images"]["value"]) == 11
    assert [(task.__name__, name) for task, name, *_ in fake.calls] == [("plan", "tiny"), ("sweep", "tiny")]


def test_cancel_reaches_a_run_in_the_other_process(fake, demo):
    sweep, visitor, values = handler(demo[1], "sweep")
    run = sweep(*values)
    assert "step" in str(next(run).values())
    visitor.cancel()
    assert [list(told.values()) for told in run] == [["Cancelled: nothing was changed."]]
    assert fake.closed == 1


def test_what_is_wrong_with_a_request_is_told_from_the_other_process(fake):
    model = models.Model("tiny", XAIPipeline(convnext_unet(), DDPMScheduler()))
    demo = server.build(
        {"tiny": model}, settings.Limits(max_seconds=0.0, confirm_seconds=600), steps=1000, gradients=False
    )
    sweep, _, values = handler(demo, "sweep")
    *_, last = sweep(*values)
    assert "Stopped after 0 s, the limit of this server" in str(last.values())


def test_the_space_imports_spaces_before_torch(tmp_path):
    (tmp_path / "spaces.py").write_text('import sys\nprint("torch" in sys.modules)\n')
    environment = {**os.environ, "SPACES_ZERO_GPU": "true", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    code = "import runpy, sys; runpy.run_path('spaces/app.py'); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]


def test_elsewhere_nothing_is_decorated(monkeypatch):
    fake = FakeSpaces()
    monkeypatch.setitem(sys.modules, "spaces", fake)
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    monkeypatch.setenv("SPACE_ID", "user/faces")
    model = models.Model("tiny", XAIPipeline(convnext_unet(), DDPMScheduler()))
    demo = server.build({"tiny": model}, settings.Limits(confirm_seconds=600), steps=4, every=2, gradients=False)
    sample, visitor, values = handler(demo, "sample")
    list(sample(*values))
    assert visitor.result is not None
    assert (fake.durations, fake.calls) == ([], [])
