"""CelebA in small, as its sources lay it out."""

from PIL import Image


# fmt: off
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young",
)
# fmt: on


def picture(path, grey, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 30), (grey, grey, grey)).convert(mode).save(path)


def official_folder(folder, rows, partition=None):
    """CelebA's own files, with all forty attributes: `rows` of (file name, attributes that are present)."""
    folder.mkdir(parents=True)
    lines = [str(len(rows)), " ".join(CELEBA_ATTRIBUTES)]
    for index, (name, present) in enumerate(rows):
        picture(folder / "img_align_celeba" / name, 10 * index)
        lines.append(f"{name} " + " ".join(" 1" if a in present else "-1" for a in CELEBA_ATTRIBUTES))
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    if partition is not None:
        lines = [f"{name} {part}" for (name, _), part in zip(rows, partition, strict=True)]
        (folder / "list_eval_partition.txt").write_text("\n".join(lines))
    return str(folder)


def grey_and_label(*splits):
    """(grey of the picture, label) of each row of the splits."""
    return [(int(x[0, 0, 0]), int(y)) for s in splits for x, y in zip(s.images, s.labels, strict=True)]
