"""All experiments by name."""

from diffusers_xai.experiments import (
    ablation,
    artifact,
    emergence,
    label_divergence,
    label_pairs,
    layer_distance,
    localisation,
    predetermination,
    process,
    ssim_trajectory,
)
from diffusers_xai.experiments.base import ALL_LABELS, Experiment


_ALL = (
    Experiment(
        "process",
        "From noise to an image",
        "The state x_t at ten moments of the process, from left to right, and the result, for several seeds.",
        "thesis fig. 5.3, 5.4",
        process.run_strip,
        process.plot_strip,
        seeds=4,
    ),
    Experiment(
        "layer-types",
        "What the layers of one block see",
        "The map of the most active channel c* of each layer of the first block at t = 200, each in its own range:"
        " convolutions keep edges and areas, attention weighs them.",
        "thesis fig. 5.5, eq. 4.1.4",
        process.run_layers,
        process.plot_layers,
        seeds=4,
        steps=100,
    ),
    Experiment(
        "ssim-trajectory",
        "How much each step changes the image",
        "SSIM between each state of the process and the next, for many seeds. High values mean that a step changes"
        " little. The line is the mean over the seeds, the light band one standard deviation of the seeds, the dark"
        " band the 95 % interval of the mean.",
        "thesis eq. 4.1.8, fig. 5.6",
        ssim_trajectory.run,
        ssim_trajectory.plot,
    ),
    Experiment(
        "layer-distance",
        "How much the layers change",
        "The distance of a layer's output to that at the next recorded step, each layer in units of its own mean, over"
        " the process. A peak is a moment at which the layer turns to something else. The maps are those of the most"
        " active channel c* of each layer, before and after its largest jump, of the first seed.",
        "thesis eq. 4.1.10, fig. 5.7",
        layer_distance.run,
        layer_distance.plot,
        seeds=10,
        plot_images=layer_distance.plot_images,
    ),
    Experiment(
        "localisation",
        "Where the pixels of a region look",
        "How much the clean image that is predicted within the outline depends on every pixel of the input, at four"
        " moments (each map in its own range), for two seeds. Above: how much of the squared gradient lies inside the"
        " region, and its root mean square distance from it in pixels, means over all seeds. The maps of the layers"
        " show the gradient of the region by the channel it depends on most, of the first seed; blue and orange have"
        " opposite signs.",
        "thesis eq. 4.1.2, fig. 5.8, 5.9",
        localisation.run,
        localisation.plot,
        seeds=8,
        steps=100,
        region="eyes",
        plot_images=localisation.plot_images,
    ),
    Experiment(
        "emergence",
        "When structure shows",
        "How well each layer's maps (its part of A_t, and its most active channel c*) and the state x_t correlate with"
        " the edges, and with the foreground, of the final image over the process, means over the seeds. The dotted"
        " line is what they show of the image of another seed: chance. A layer that rises before x_t does shows"
        " structure that is not to be seen yet. The table tells in how many seeds a layer shows more than x_t, from"
        " when on, and by how much of the process its correlation passes 0.3 before that of x_t does (lead).",
        "thesis chapter 5, as a number",
        emergence.run,
        emergence.plot,
        steps=100,
        table=emergence.table,
    ),
    Experiment(
        "artifact",
        "Which channel made a part of the image",
        "The channel of a layer that the outlined region depends on most, by its gradient at t = 200, is ablated in a"
        " new run. The change should lie in the region, and be larger than that of a random channel.",
        "thesis fig. 5.12",
        artifact.run,
        artifact.plot,
        seeds=8,
        steps=100,
        region="eyes",
    ),
    Experiment(
        "label-divergence",
        "Where the runs of two labels part",
        "Two runs start from the same noise with different labels. Above: SSIM of their states, which is 1 as long as"
        " they are the same. Below: the distance of their attention maps A_t, which the label changes before the"
        " states differ. The light band is one standard deviation of the seeds, the dark one the mean's interval. The"
        " images are the states, attention maps and gradients of the outlined region, of both runs of the first seed.",
        "thesis section 5.3.1, fig. 5.13 to 5.16, D.1",
        label_divergence.run,
        label_divergence.plot,
        labels=2,
        region="eyes",
        plot_images=label_divergence.plot_images,
    ),
    Experiment(
        "predetermination",
        "From when on the label no longer matters",
        "The label is switched at ten steps of the process, and each image is compared with that of the run that was"
        " never switched. The index is the share of the process after which a switch leaves the image alike (SSIM of"
        " at least 0.9), with the 95 % interval over the seeds. The images are those of the first seed.",
        "thesis section 5.3.2, fig. 5.17, D.2",
        predetermination.run,
        predetermination.plot,
        labels=2,
        steps=100,
        plot_images=predetermination.plot_images,
        table=predetermination.table,
    ),
    Experiment(
        "label-pairs",
        "How early each pair of labels is settled",
        "The index of the predetermination for every pair of labels that the model was trained on: the share of the"
        " process after which a switch from the label of the row to that of the column leaves the image alike, means"
        " over the seeds. Low values are pairs that are told apart early, or hardly at all.",
        "thesis section 5.3.2, fig. 5.17, D.2",
        label_pairs.run,
        label_pairs.plot,
        labels=ALL_LABELS,
        seeds=2,
        steps=50,
    ),
    Experiment(
        "ablation",
        "What the most active channel of a layer is worth",
        "In each layer the channel c* that is most active at t = 200 is set to zero at every step, and so are random"
        " channels of the same layer, each in a run of its own. The lower the SSIM to the intact image, the more the"
        " image needed the channel. Where the two intervals overlap, c* matters no more than chance. The images are"
        " those of the first seed, without c* of each layer.",
        "thesis eq. 4.1.4, alg. 6, fig. 5.10, 5.11, tables 5.1, 5.2",
        ablation.run,
        ablation.plot,
        seeds=8,
        steps=50,
        region="face",
        plot_images=ablation.plot_images,
        table=ablation.table,
    ),
)
EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
