"""The numbers of an evaluation as Markdown, and as rows of the model card."""

from collections.abc import Sequence


def to_markdown(result: dict) -> str:
    """Tables of what `evaluate.py` measured."""
    attributes, settings, classifier = result["attributes"], result["settings"], result["classifier"]
    bits = len(attributes)
    rows = [
        ["classifier: accuracy on validation images"] + [_percent(classifier["accuracy"][a]) for a in attributes],
        ["classifier: balanced accuracy"] + [_percent(classifier["balanced_accuracy"][a]) for a in attributes],
        ["photographs of these labels"] + _fidelity_cells(result["real"], attributes),
    ]
    rows += [
        [f"samples, guidance {scale}", *_fidelity_cells(fidelity, attributes)]
        for scale, fidelity in result["fidelity"].items()
    ]
    scales = list(result["fidelity"])
    labels = [
        [f"`{int(label):0{bits}b}`", _cell(share)]
        + [_cell(result["fidelity"][scale]["labels"].get(label)) for scale in scales]
        for label, share in result["real"]["labels"].items()
    ]
    losses = [
        [f"{row['from']}–{row['to'] - 1}", f"{row['noise_mse']:.5f}", f"{row['noise_l1']:.4f}", f"{row['l1']:.4f}",
         f"{row['ssim']:.4f}", f"{row['psnr']:.2f}"]
        for row in result["buckets"]
    ]  # fmt: skip
    diversity = [
        [what.replace("_", " "), *(f"{result['diversity'][name][what]:.3f}" for name in ("samples", "photographs"))]
        for what in result["diversity"]["samples"]
    ]
    return "\n\n".join(
        [
            f"# Evaluation of {result['checkpoint']}",
            "## Label fidelity",
            f"Share of images in which a classifier of attributes sees what was asked for (95 % Wilson interval):"
            f" {settings['per_label']} samples of each label with at least {settings['least_images']} training images,"
            f" {settings['scheduler']} with {settings['num_inference_steps']} steps. Photographs: as many of each"
            " label, where there are, of people that neither network has seen.",
            _table(["", *attributes], rows),
            "Share of images with all attributes as asked:",
            _table(["label", "photographs", *(f"guidance {scale}" for scale in scales)], labels),
            "## One-step predictions on validation images",
            _table(["timesteps", "MSE of noise", "L1 of noise", "L1 of x̂_0", "SSIM", "PSNR (dB)"], losses),
            "## Are 64 samples 64 different faces?",
            "Root mean square distance to the nearest other image of the set, and to the nearest training image, of 64"
            " samples (`samples.png`) and of 64 photographs of the same labels.",
            _table(["distance", "samples", "photographs"], diversity),
        ]
    ) + "\n"  # fmt: skip


def card_metrics(result: dict) -> list[list[str]]:
    """Rows (measure, value, how it was measured) for `model_card.md`."""
    settings, real = result["settings"], result["real"]["attributes"]
    how = (
        f"{settings['per_label']} samples of each label with at least {settings['least_images']} training images,"
        f" {settings['scheduler']} {settings['num_inference_steps']} steps, judged by a classifier that sees it in"
    )
    return [
        [
            f"{name} as asked, guidance {scale}",
            _cell(fidelity["attributes"][name]["as_asked"]),
            f"{how} {_percent(real[name]['as_asked']['share'])} of photographs",
        ]
        for scale, fidelity in result["fidelity"].items()
        for name in result["attributes"]
    ]


def _fidelity_cells(fidelity: dict, attributes: Sequence[str]) -> list[str]:
    return [_cell(fidelity["attributes"][name]["as_asked"]) for name in attributes]


def _cell(share: dict | None) -> str:
    if share is None:
        return "–"
    return f"{_percent(share['share'])} ({100 * share['low']:.0f}–{100 * share['high']:.0f})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
