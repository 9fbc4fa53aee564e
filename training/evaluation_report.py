"""The numbers of an evaluation as Markdown, and as rows of the model card."""

from collections.abc import Sequence

from diffusers_xai.labels import label_bits
from training.human_models import HOW_TO_GET
from training.judges import HeldOutJudge, OutsideJudge


OWN, OUTSIDE = HeldOutJudge.name, OutsideJudge.name


def to_markdown(result: dict) -> str:
    """Tables of what `evaluate.py` measured."""
    attributes, settings = result["attributes"], result["settings"]
    scales = [f"samples, guidance {scale}" for scale in next(iter(result["judges"].values()))["samples"]]
    rows, labels = [], []
    for judge, found in result["judges"].items():
        sets = [found["photographs"], found["soft photographs"], *found["samples"].values()]
        for name, table in zip(["photographs", "photographs, softened", *scales], sets, strict=True):
            rows.append([judge, name, *(_balanced(table, attribute) for attribute in attributes)])
        labels += [
            [judge, f"`{label_bits(int(label), attributes)}`", *(_cell(table["labels"].get(label)) for table in sets)]
            for label in found["soft photographs"]["labels"]
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
            "Mean of the shares of images that show an attribute as asked where it was and where it was not asked for"
            " (95 % interval): whoever always gives the same answer has 50 %."
            f" {settings['per_label']} samples of each label with at least {settings['least_images']} training images,"
            f" {settings['scheduler']} with {settings['num_inference_steps']} steps. The ceiling is what the same"
            f" judge sees in {result['photographs']} photographs of the same labels, of people that the network has"
            " not seen, made as soft as the samples are.",
            f"*{OWN}*: classifiers trained on {result['held_out_images']} photographs of people that the network has"
            " not seen, each tested on those of its people that it has not seen itself. "
            + (
                f"*{OUTSIDE}*: networks that saw none of these data, `faceres` (Male) and `emotion` (Smiling); only"
                " their thresholds are set on photographs."
                if OUTSIDE in result["judges"]
                else f"The second judge was not asked: {HOW_TO_GET}."
            ),
            _table(["judge", "images", *attributes], rows),
            "Share of images with all attributes as asked. If images did not depend on their labels, the mean of a"
            f" column would be at most {_percent(1 / len(labels))}.",
            _table(["judge", "label", "photographs", "photographs, softened", *scales], labels),
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
    settings = result["settings"]
    how = (
        f"mean of the shares where it was and was not asked for, chance 50 %; {settings['per_label']} samples of each"
        f" label with at least {settings['least_images']} training images, {settings['scheduler']}"
        f" {settings['num_inference_steps']} steps;"
    )
    return [
        [
            f"{name} as asked, guidance {scale}, judge: {judge}",
            _balanced(table, name),
            f"{how} the judge reaches {_balanced(found['soft photographs'], name)} on photographs as soft as samples",
        ]
        for judge, found in result["judges"].items()
        for scale, table in found["samples"].items()
        for name in table["attributes"]
    ]


def _balanced(fidelity: dict, name: str) -> str:
    return _cell(fidelity["attributes"][name]["balanced"]) if name in fidelity["attributes"] else "–"


def _cell(share: dict | None) -> str:
    if share is None:
        return "–"
    return f"{_percent(share['share'])} ({100 * share['low']:.0f}–{100 * share['high']:.0f})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
