"""The words of the interface: a sentence for every panel, and the definitions that they link to."""

_DEFINITIONS = {
    "samples": ("x_t and x̂₀", "x_t is the state at timestep t: noise at t = 1000, the image at 0. x̂₀ is the"
    " image that"
     " follows from x_t and the noise that the network predicts in it."),
    "ssim": ("SSIM", "Structural similarity of two images over windows of 7 pixels: 1 for equal ones. The trajectory"
     " compares the state of each step with that of the next (thesis eq. 4.1.8)."),
    "activation": ("Activation a<sub>l,t</sub> and max channel c*", "The output of layer l at time t, one map"
    " per channel. c* is"
     " the channel with the largest sum over the image, or over your region (thesis eq. 4.1.4)."),
    "distance": ("LayerDist", "The Frobenius norm of the difference of two activations of a layer (thesis eq."
    " 4.1.10)."),
    "attention": ("A_t", "The outputs of all attention layers, summed over the channels, enlarged to the image"
    " and summed"
     " (thesis section 4.3)."),
    "weights": ("Softmax attention weights", "In softmax attention every pixel, the query, spreads a weight of 1 over"
    " all places, the keys. Shown is the mean over queries and heads. Linear attention has no such weights."),
    "gradient": ("Gradient volume (PGV), energy, gradient map and attention", "The volume holds, for each masked"
     " output pixel k, the derivative of its colour sum by every input pixel (thesis eq. 4.1.2). Its energy is"
     " √Σ_k g_k². A gradient map is the derivative of the masked output's sum by a layer's output. Gradient attention"
     " weights a layer's channels by the means of such derivatives, and keeps what is positive (Liu et al. 2020)."),
    "edit": ("Channel masking and label switch", "Masking sets channels of a layer to zero at every step"
    " (thesis alg. 6)."
     " A switch gives the network another label from some step on."),
    "index": ("Predetermination", "The share of the steps that are done when a label switch leaves the image alike:"
    " SSIM of 0.9"
     " or more to the unswitched image (thesis section 5.3.2)."),
}  # fmt: skip

DEFINITIONS_HTML = (
    "<h2>Definitions</h2><dl>"
    + "".join(f'<dt id="def-{key}"><b>{title}</b></dt><dd>{text}</dd>' for key, (title, text) in _DEFINITIONS.items())
    + "</dl><p>“Thesis” is E.-D. M. Schörverth, <i>An XAI Interface for Diffusion Models</i>, TU Berlin, 2023.</p>"
)

INTRO = """# How a diffusion model makes a face
Choose what the face should have, press **Sample**, and look inside: what each layer saw, where the network attended,
which pixels mattered. Then change something and compare. The models of the package are small and for research."""

EMPTY = "Press **Sample**, or click an example."
STALE = "The controls have changed since: press **Sample** to see what they do."
BEFORE = "Shown is the run before."
EMPTY_SWEEP = "Choose another label than that of the image, and run the sweep."
EARLIER = "What stands below is still the answer to the earlier question."
CANCELLED = "Cancelled: the current run ends at its next step."
EMPTY_EXPERIMENT = "Nothing to see yet: choose a question, and run the experiment."
EMPTY_WORDS = "Nothing to see yet: type a prompt, and press **Run**."
PROMPT = "a smiling woman with bangs, glasses and blond hair"
OTHER_PROMPT = "a man with black hair, green background"
VOCABULARY = (
    "It knows: a (smiling) man or woman with bangs, lipstick, glasses; black, brown, ginger, blond, grey or blue hair;"
    " blue, green, yellow, orange, purple or grey background."
)
WORDS = (
    "**Words.** A small text-to-image model of drawn faces, which is in the package: see where its words look, what"
    " they change, and which layer carries the prompt. The noise seed is that of the settings."
)
WORD_MAPS = (
    "A row for each word, over the images x̂₀ that the network predicts along the way: bright places look at that word"
    " most, by the softmax weights of all layers; last, the mean of all times. A map tells where the network looks,"
    " not what the word does: for that, ask what it changes, which has controls. *Source: Tang et al. 2023 (DAAM),"
    " here per step.*"
)
EXPERIMENTS = (
    "**Experiments.** One run shows one image; an experiment asks a question over several, mostly beside a control"
    " that says what chance would show. Label, noise seed, steps, scheduler, guidance and region are those of the"
    " settings."
)
NOT_KEPT = "No run is kept yet: press **Keep this run to compare**, then sample another one."
KEPT = "This run is kept. Change a setting and sample again to compare."
NOT_ALIKE = "They cannot be compared, because their images or their recorded steps differ."
NO_LABELS = "This model has no labels, so there is nothing to switch."
NO_LAYERS = "No layer was recorded: choose blocks under **Blocks and layers to record**, and sample again."
NO_ATTENTION = "This model has no attention layers, so there is no attention to show."
NO_ATTENTION_LAYER = "No attention layer was recorded: choose one under **Blocks and layers to record**."
NO_WEIGHTS = "No softmax attention weights were recorded: tick it under **Blocks and layers to record**, and sample."
LINEAR = "The attention of this model is linear: it has no softmax weights."
NO_GRADIENTS = "No gradients were computed: tick it under **Region, and its gradients**, and sample again."
NO_PROFILE_MAP = "This profile holds no attention map."


def thinned(some: int, every: int) -> str:
    """What is said where not all pixels of a region have gradients."""
    return f"The volume is of {some} of the region’s {every} pixels, in evenly spaced rows and columns."


def chosen(name: str) -> str:
    """What is said when a visitor has chosen a model."""
    return f"The model is now `{name}`. What is shown is of the last run: press **Sample** for a new one."


def compared(kept: str, shown: str) -> str:
    """Which two runs are compared."""
    return f"**Kept run (“intact”):** {kept}.\n\n**This run (“changed”):** {shown}."


def explain(key: str, text: str) -> str:
    """A sentence about a panel, with the link to the definition."""
    return f"{text} [Definition](#def-{key})"


SAMPLES = explain(
    "samples",
    "**The process.** From left to right, noise x_t becomes an image; below, x̂₀ is the image that the network"
    " predicts at that time.",
)
SSIM = explain(
    "ssim",
    "**SSIM trajectory.** How alike successive states are: 1 is no change. The curve is mostly that of the"
    " noise schedule: noising a finished image gives nearly the same one.",
)
SCHEMATIC = explain(
    "activation",
    "**The U-Net.** The image shrinks to the middle and grows again; blocks with a dot and a thick border are"
    " recorded.",
)
MAP = explain(
    "activation",
    "**Activation map.** One channel of a layer at one time: bright is active. Move the sliders; the right map is the"
    " channel that is most active in your region.",
)
MAX = explain(
    "activation",
    "**Max channels.** For every layer the channel c* that is most active in your region, over time: see when a shape"
    " appears.",
)
DISTANCES = explain(
    "distance", "**Layer distances.** How much a layer's output changes between recorded steps: high is busy."
)
ATTENTION = explain(
    "attention",
    "**Attention A_t.** All attention layers summed into one map: bright pixels got the strongest attention output"
    " at that time.",
)
WEIGHTS = explain(
    "weights",
    "**Softmax attention weights.** How much all pixels together look at each place, averaged over the heads; one row"
    " a layer.",
)
ATTENTION_LAYER = explain(
    "attention", "**Attention by layer.** The channel of one layer that is most active in your region, over time."
)
VOLUME = explain(
    "gradient",
    "**Gradient volume (PGV).** Each point is an input pixel that changes an output pixel of your region;"
    " near-diagonal clouds mean that pixels depend on their neighbourhood. Drag to turn it.",
)
ENERGY = explain(
    "gradient", "**Gradient energy.** The volume seen from the front: bright input pixels matter most to your region."
)
SENSITIVITY = explain(
    "gradient", "**Label sensitivity.** How much each attribute of the label changes your region, as a share."
)
GRADIENT_MAP = explain(
    "gradient",
    "**Gradient map.** How your region of the output depends on one channel: blue lowers it, orange raises it, white"
    " does nothing.",
)
GRADIENT_ATTENTION = explain(
    "gradient",
    "**Gradient attention.** Where a layer raises the colour sum of your region in x̂₀, one row a layer (Liu et al."
    " 2020). In this project's audit only the last block's map passes.",
)
COMPARE = explain(
    "edit",
    "**Comparison.** The kept run is above (“intact”), the new one in the middle (“changed”), and below is what"
    " differs between them: bright is more. All are states x_t, and the results last.",
)
COMPARE_SSIM = explain(
    "ssim", "**SSIM between the states x_t of the runs.** 1 is equal; where the curve falls, the runs part."
)
COMPARE_ATTENTION = explain("distance", "**Distance of A_t.** How differently the two runs attend; 0 is equally.")
PREDETERMINATION = explain(
    "index",
    "**Predetermination.** The label is switched at ten times. The curve is the SSIM to the run that is never"
    " switched: from 0.9 on the image is decided. The index is the share of the steps that are done by then.",
)
COMPARE_MAPS = explain("attention", "**A_t of both runs.** Above the kept run, below this one.")
COMPARE_VOLUMES = explain(
    "gradient", "**Gradient volumes of both runs** near the middle of the process, in the same order."
)
SWEEP_IMAGES = explain(
    "index",
    "**Images of the sweep.** The last states of one seed: never switched, then switched at later and later steps;"
    " those like the first were decided before the switch.",
)
LIVE = explain("samples", "**The image while it forms.** x_t of the current run; at the end, the sample itself.")
REGION = explain(
    "gradient",
    "Paint which pixels you ask about, with the mouse or a finger. Without paint it is the region tinted orange. Max"
    " channels c* are sought there too. Of more than {pixels} pixels, a gradient volume takes evenly spaced ones.",
)
ABLATION = explain("edit", "A masked channel is set to zero at every step: see what the image loses.")
SWITCH = explain("edit", "The network is given another label from some step on: see whether the image still follows.")
