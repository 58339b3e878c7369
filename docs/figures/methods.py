"""Draws the picture of each method's page: `python docs/figures/methods.py` writes docs/figures/METHOD.svg."""

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("agg")
matplotlib.rcParams |= {
    "svg.hashsalt": "twinblock",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.fonttype": "path",
}
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402

BLUE, ORANGE, GREEN, GREY, RED = "#cfe2f3", "#fce0c2", "#d5ead0", "#eeeeee", "#c0392b"
PINK = "#f2c1bb"
HERE = Path(__file__).parent


class Drawing:
    """Boxes and arrows on a plane of width x height."""

    def __init__(self, width: float, height: float):
        self.figure, self.axes = plt.subplots(figsize=(width, height))
        self.axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
        self.axes.axis("off")
        self.figure.subplots_adjust(0, 0, 1, 1)

    def box(self, x: float, y: float, text: str, colour: str = BLUE, width: float = 1.05, dashed: bool = False):
        style = {"boxstyle": "round,pad=0.02,rounding_size=0.08", "ec": "#555555", "ls": "--" if dashed else "-"}
        self.axes.add_patch(FancyBboxPatch((x - width / 2, y - 0.24), width, 0.48, fc=colour, **style))
        self.text(x, y, text)

    def text(self, x: float, y: float, text: str, colour: str = "black", **how):
        self.axes.text(x, y, text, ha=how.pop("ha", "center"), va="center", color=colour, **how)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str = "#333333", style: str = "-|>"):
        self.axes.annotate("", end, start, arrowprops={"arrowstyle": style, "color": colour, "lw": 1.3})

    def cut(self, x: float, y: float):
        """A gradient that is stopped."""
        for shift in (-0.04, 0.04):
            self.axes.plot([x + shift - 0.05, x + shift + 0.05], [y - 0.17, y + 0.17], color=RED, lw=2)

    def save(self, name: str):
        self.figure.savefig(HERE / f"{name}.svg", metadata={"Date": None})
        plt.close(self.figure)


def siamese(
    name: str, loss: str, between: str, lower: str = BLUE, predictor: bool = False, stop: bool = False, extra: str = ""
):
    """Two views, two streams, one loss."""
    d = Drawing(8.6, 2.7)
    top, bottom, end = 2.1, 0.6, 7.35
    d.box(0.6, 1.35, "image", GREY, 0.8)
    for y, view, colour in ((top, "view 1", BLUE), (bottom, "view 2", lower)):
        d.arrow((1.0, 1.35), (1.5, y))
        d.box(1.95, y, view, GREY, 0.85)
        d.arrow((2.4, y), (2.75, y))
        d.box(3.3, y, "encoder", colour, dashed=lower != BLUE and y == bottom)
        d.arrow((3.84, y), (4.15, y))
        d.box(4.7, y, "projector", colour, dashed=lower != BLUE and y == bottom)
    d.arrow((4.0, top - 0.35), (4.0, bottom + 0.35), "#888888", "<|-|>" if lower == BLUE else "-|>")
    d.text(4.12, 1.35, between, "#444444", ha="left", fontsize=9)
    if predictor:
        d.arrow((5.24, top), (5.5, top))
        d.box(6.0, top, "predictor", GREEN, 0.95)
    d.arrow((6.49 if predictor else 5.24, top), (end, 1.62))
    d.arrow((5.24, bottom), (end, 1.08))
    if stop:
        d.cut(6.2, 0.81)
        d.text(5.3 if extra else 6.35, 0.22 if extra else 0.42, "no gradient", RED, fontsize=9)
    d.box(end + 0.25, 1.35, loss, ORANGE, 1.85)
    if extra:
        d.box(end + 0.1, 0.3, extra, GREY, 2.0)
        d.arrow((end + 0.1, 0.56), (end + 0.2, 1.1))
    d.save(name)


def masked():
    d = Drawing(8.6, 1.9)
    chain = (
        (0.65, "patches", GREY, 0.95),
        (2.2, "visible\npatches", GREY, 1.0),
        (3.75, "encoder", BLUE, 1.1),
        (5.45, "decoder", GREEN, 1.1),
        (7.3, "distance", ORANGE, 1.3),
    )
    for (x, text, colour, width), following in zip(chain, [*chain[1:], None], strict=True):
        d.box(x, 1.35, text, colour, width)
        if following:
            d.arrow((x + width / 2 + 0.02, 1.35), (following[0] - following[3] / 2 - 0.02, 1.35))
    d.box(5.45, 0.4, "places of the hidden", GREY, 1.9)
    d.arrow((5.45, 0.66), (5.45, 1.09))
    d.box(7.6, 0.4, "hidden patches", GREY, 1.5)
    d.arrow((7.45, 0.66), (7.35, 1.09))
    d.save("mae")


def supervised():
    d = Drawing(8.6, 1.5)
    for x, text, colour, width in (
        (0.7, "image", GREY, 0.9),
        (2.1, "view", GREY, 0.9),
        (3.6, "encoder", BLUE, 1.1),
        (5.2, "classifier", GREEN, 1.2),
    ):
        d.box(x, 0.9, text, colour, width)
    for a, b in ((1.15, 1.64), (2.56, 3.04), (4.16, 4.59), (5.81, 6.4)):
        d.arrow((a, 0.9), (b, 0.9))
    d.box(7.4, 0.9, "cross entropy", ORANGE, 1.9)
    d.text(7.4, 0.3, "label", fontsize=9)
    d.arrow((7.4, 0.4), (7.4, 0.65))
    d.save("supervised")


def blocks(name: str, overlapping: bool, head: str = "projector", loss: str = "loss", unit: str = "block"):
    """A chain of blocks, each with its loss, or each pair with one."""
    d = Drawing(8.6, 2.6)
    places = [1.7, 3.5, 5.3, 7.1]
    d.text(0.45, 2.1, "views")
    d.arrow((0.75, 2.1), (1.15, 2.1))
    for k, x in enumerate(places, start=1):
        d.box(x, 2.1, f"{unit} {k}", BLUE)
        if x < places[-1]:
            d.arrow((x + 0.55, 2.1), (x + 1.25, 2.1))
            if not overlapping:
                d.cut(x + 0.9, 2.1)
    heads = [((a + b) / 2, b) for a, b in pairwise(places)] if overlapping else [(x, x) for x in places]
    for k, (x, under) in enumerate(heads, start=1):
        d.box(x, 1.2, head, GREEN, 1.05 if "\n" not in head else 1.35)
        d.box(x, 0.4, f"{loss} {k}" if not overlapping else f"loss {k}, {k + 1}", ORANGE)
        d.arrow((under, 1.84), (x + (0.3 if overlapping else 0), 1.46))
        d.arrow((x, 0.94), (x, 0.66))
        if overlapping:
            d.arrow((x - 0.3, 1.46), (x - 0.9, 1.84), RED, "-|>")
    d.text(8.05, 2.1, "features", fontsize=9)
    d.text(places[0] + 0.9, 2.48, "gradient ends" if not overlapping else "", RED, fontsize=9)
    if overlapping:
        d.text(0.75, 1.5, "gradient reaches\none block back", RED, fontsize=9)
    d.save(name)


def broadcast():
    """One loss at the end, whose error goes to every block by a way of its own."""
    d = Drawing(8.6, 2.4)
    chain = [(1.7, "block 1", BLUE), (3.2, "block 2", BLUE), (4.7, "block 3", BLUE), (6.2, "head", GREEN)]
    d.text(0.45, 1.9, "views")
    d.arrow((0.75, 1.9), (1.15, 1.9))
    for x, text, colour in chain:
        d.box(x, 1.9, text, colour, 0.95)
        d.arrow((x + 0.5, 1.9), (x + 1.0, 1.9))
    d.box(7.6, 1.9, "loss", ORANGE, 0.75)
    d.axes.plot([7.6, 7.6, 1.7], [1.64, 0.5, 0.5], color=RED, lw=1.3)
    for k, (x, *_) in enumerate(chain[:3], start=1):
        d.box(x, 1.02, f"matrix {k}", GREY, 0.95)
        d.arrow((x, 0.5), (x, 0.78), RED)
        d.arrow((x, 1.27), (x, 1.65), RED)
    d.text(5.9, 0.3, "error", RED, fontsize=9)
    for x, *_ in chain[:3]:
        d.cut(x + 0.75, 1.9)
    d.save("direct_feedback")


def two_passes(name: str, first: str, second: str):
    """Images that are true and images that are false, through the same layers, each with its goodness."""
    d = Drawing(8.6, 2.7)
    for y, text, way in ((2.1, first, "up"), (0.6, second, "down")):
        d.box(1.05, y, text, GREY, 1.8)
        d.arrow((1.97, y), (2.35, y))
        for k, x in enumerate((2.95, 5.65), start=1):
            d.box(x, y, f"layer {k}", BLUE)
            d.arrow((x + 0.55, y), (x + 0.72, y))
            d.box(x + 1.4, y, f"goodness {way}", ORANGE, 1.3)
        d.arrow((2.95, y - 0.26), (2.95, y - 0.45), style="-")
        d.axes.plot([2.95, 5.65], [y - 0.45, y - 0.45], color="#333333", lw=1.3)
        d.arrow((5.65, y - 0.45), (5.65, y - 0.27))
        d.cut(4.3, y - 0.45)
    for x in (2.95, 5.65):
        d.text(x, 1.4, "same weights", "#444444", fontsize=9)
    d.text(7.95, 1.4, "no gradient\nbetween layers", RED, fontsize=9)
    d.save(name)


def patches(name: str, loss: str):
    """Patches of an image, and which of them is told by which."""
    d = Drawing(8.6, 2.3)
    for row in range(4):
        for column in range(4):
            colour = {(0, 1): BLUE, (2, 1): GREEN, (3, 3): PINK, (1, 0): PINK}.get((row, column), GREY)
            d.axes.add_patch(plt.Rectangle((0.2 + 0.45 * column, 1.65 - 0.45 * row), 0.4, 0.4, fc=colour, ec="#555555"))
    d.text(1.1, 2.2, "patches", fontsize=9)
    for y, text, colour in ((1.85, "a patch", BLUE), (1.15, "one below", GREEN), (0.45, "others", PINK)):
        d.box(3.0, y, text, colour, 1.2)
        d.arrow((3.62, y), (4.0, y))
        d.box(4.6, y, "block", BLUE)
        d.arrow((5.14, y), (5.9, 1.15 + 0.3 * (y - 1.15)))
    d.box(7.1, 1.15, loss, ORANGE, 2.3)
    d.save(name)


def model_of_images(name: str, first: str, second: str, third: str, below: str):
    """What makes a code of an image, and an image of the code."""
    d = Drawing(8.6, 1.9)
    chain = ((0.6, "image", GREY, 0.8), (2.2, first, BLUE, 1.5), (4.1, second, GREEN, 1.3), (6.0, third, BLUE, 1.5))
    for (x, text, colour, width), following in zip(chain, [*chain[1:], (7.7, "", "", 0.8)], strict=True):
        d.box(x, 1.35, text, colour, width)
        d.arrow((x + width / 2 + 0.02, 1.35), (following[0] - following[3] / 2 - 0.02, 1.35))
    d.box(7.7, 1.35, "image", GREY, 0.8)
    d.text(4.1, 0.5, below, "#444444", fontsize=9)
    d.save(name)


def main():
    siamese("simclr", "attract my view,\nrepel others", "same weights")
    siamese("byol", "distance", "moving average", ORANGE, predictor=True, stop=True)
    siamese("moco_v2", "attract my key,\nrepel the queue", "moving average", ORANGE, stop=True, extra="queue of keys")
    siamese("moco_v3", "find my key\nin the batch", "moving average", ORANGE, predictor=True, stop=True)
    siamese(
        "nnclr", "attract, and repel\nthe batch", "same weights", predictor=True, stop=True, extra="nearest in queue"
    )
    siamese("dcl", "attract my view,\nrepel other images", "same weights")
    siamese("sup_con", "attract my class,\nrepel others", "same weights")
    siamese("pcl", "attract my key\nand my cluster", "moving average", ORANGE, stop=True, extra="queue, clusters")
    siamese("simsiam", "distance", "same weights", predictor=True, stop=True)
    siamese("barlow_twins", "correlation\n= identity", "same weights")
    siamese("vicreg", "invariance, variance,\ncovariance", "same weights")
    siamese("sdclr", "attract my view,\nrepel others", "smallest weights pruned", ORANGE)
    siamese("dino", "same prototypes", "moving average", ORANGE, stop=True, extra="centre and sharpen")
    siamese("swav", "predict the code", "same weights", stop=True, extra="codes that share\nprototypes equally")
    masked()
    two_passes("forward_forward", "own label shown", "wrong label shown")
    two_passes("scff", "image and itself", "image and another")
    patches("greedy_infomax", "tell which lies below")
    patches("clapp", "below: yes, others: no")
    model_of_images("vae", "encoder", "code + noise", "decoder", "codes stay near a normal distribution")
    model_of_images(
        "dbn", "weights", "hidden units", "same weights", "the next RBM takes the hidden units for its image"
    )
    supervised()
    blocks("blockwise", False)
    blocks("overlapping", True)
    blocks("lpl", False, "mean", "loss", "layer")
    blocks("clapp_pp", False, "linear map", "hinge", "layer")
    blocks("local_losses", False, "classifier,\nsimilarity", "loss", "layer")
    broadcast()


if __name__ == "__main__":
    main()
