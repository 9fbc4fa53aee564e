"""The tests of an audit: what their numbers mean, and what passes."""

from dataclasses import dataclass


LEVEL = 0.05  # of false verdicts among those that pass
LIMIT = 0.5**0.5  # of a rank correlation: half of the variance in common
PASSES, FAILS, TOLD = "passes", "does not pass", "told"
CHECKPOINT, CLOSED_FORM = "checkpoint", "closed form"


@dataclass(frozen=True)
class Grade:
    """A test.

    Args:
        title (`str`): Heading of its column.
        text (`str`): What the number is, and what passes.
        higher_is_better (`bool`): Which way is good.
        limit (`float`, *optional*): What it is compared with; a paired reference if `None`.
        judged (`bool`): Whether there is a verdict; otherwise the number is told.
        exact (`bool`): Whether it is arithmetic, right or wrong whatever the seed (lower is better): it passes where
            the whole interval lies below the limit, and has no p-value, which would make others' corrected ones small.
    """

    title: str
    text: str
    higher_is_better: bool
    limit: float | None = None
    judged: bool = True
    exact: bool = False


GRADES = {
    "randomised": Grade(
        "other weights",
        "rank correlation with the explanation of the same network after all its weights have changed places; passes"
        " below 0.71, less than half of the variance in common",
        False,
        LIMIT,
    ),
    "cascade": Grade(
        "weights from<br>the output",
        "the same, mean over networks of which the last layer, a quarter, half and three quarters of the layers have"
        " changed, from the output on",
        False,
        LIMIT,
    ),
    "permuted": Grade(
        "permuted<br>labels",
        "rank correlation with the explanation of the same network after it has learned labels that have changed"
        " places; of label sensitivity passes below 0.71, of the others told: where a region looks may be the same"
        " whatever a label means",
        False,
        LIMIT,
    ),
    "infidelity": Grade(
        "infidelity",
        "what the explanation fails to predict of the change that noise in patches of x_t, or the other label, makes;"
        " passes below that of random maps of the same smoothness",
        False,
    ),
    "deletion": Grade(
        "deletion",
        "how far x̂_0 in the region goes when the highest ranked places of x_t are replaced, as a share of replacing"
        " all; passes above random ranks of the same smoothness",
        True,
    ),
    "insertion": Grade(
        "insertion",
        "how much of x̂_0 in the region comes back when only they are kept; passes above random ranks",
        True,
    ),
    "excess": Grade(
        "beyond the<br>covariance",
        "deletion again; passes above the map of the covariance null, averaged to the map's own size, which is fitted"
        " to the model's samples and has seen nothing of the network",
        True,
    ),
    "closed_form": Grade(
        "error on<br>known truth",
        "what the explanation misses of the exact one of a denoiser in closed form, up to a factor; passes where the"
        " interval lies below 0.1. Maps of layers are asked of the layer that such a denoiser has, x̂_0",
        False,
        0.1,
        exact=True,
    ),
    "schedulers": Grade(
        "other<br>scheduler",
        "rank correlation with the explanation of the same noise under DPM-Solver instead of DDIM; passes above 0.71",
        True,
        LIMIT,
    ),
    "sensitivity": Grade(
        "sensitivity",
        "largest relative change of the explanation when x_t changes by 2 %; told, not judged: a map that ignores the"
        " model has 0",
        False,
        judged=False,
    ),
    "seeds": Grade(
        "other images",
        "rank correlation between the explanations of different images; told, not judged: near 1 it says the same of"
        " every image",
        False,
        judged=False,
    ),
}
NEEDED = ("randomised", "permuted", "infidelity", "deletion")
