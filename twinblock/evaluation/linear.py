"""Linear probe: multinomial logistic regression on frozen features."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from twinblock.evaluation.features import check

PENALTIES = tuple(10 ** (1 - i / 2) for i in range(15))  # from 10, where only class means matter, to 1e-6, next to none
HELD_OUT = 5  # every fifth sample chooses the penalty
PATIENCE = 2  # penalties in turn that lower nothing: one may be noise, where the strongest give chance
ROWS = 4096  # in float64 at a time
MOST_STEPS = 300  # for a penalty
ROUGH = 1e-3  # tolerance for choosing: half the work, and the losses differ less than between neighbours


def linear_probe(
    train: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    test: Float[Tensor, "q d"],
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> Float[Tensor, "q c"]:
    """Scores (logits) of each class; the predicted class is `scores.argmax(1)`.

    Features are standardised by the training set. The penalty, tried from strong to weak, is the last that
    lowers the cross-entropy of a held-out fifth of the training set, until two in turn do not; then the probe is
    fitted to all of it.
    Raises InputError for features that are not finite.
    """
    check(train, labels, test, classes)
    mean, std = train.mean(0), train.std(0, correction=0)
    scale = torch.where(std > 0, std, 1)
    train, test = (train - mean) / scale, (test - mean) / scale
    penalty = choose_penalty(train, labels, classes, penalties, seed) if len(penalties) > 1 else penalties[0]
    weight, bias = next(logistic_regression(train, labels, classes, [penalty]))
    return test @ weight + bias


def choose_penalty(
    x: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classes: int, penalties: Sequence[float], seed: int
) -> float:
    """Held out is every fifth of the samples in order of class, shuffled within the class."""
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    held = torch.arange(len(x), device=labels.device) % HELD_OUT == HELD_OUT - 1
    held, rest = by_class[held], by_class[~held]
    best, lowest, misses = penalties[0], torch.inf, 0
    for penalty, (weight, bias) in zip(
        penalties, logistic_regression(x[rest], labels[rest], classes, penalties, ROUGH), strict=True
    ):
        loss = float(cross_entropy(x[held] @ weight + bias, labels[held]))
        if loss < lowest:
            best, lowest, misses = penalty, loss, 0
        elif (misses := misses + 1) == PATIENCE:
            break
    return best


def logistic_regression(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    classes: int,
    penalties: Iterable[float],
    tolerance: float = 1e-5,
) -> Iterator[tuple[Float[Tensor, "d c"], Float[Tensor, " c"]]]:
    """For each penalty the weight and bias that minimise mean cross-entropy + penalty / 2 * |weight|^2.

    L-BFGS, each solution starting from the one before, in the coordinates in which Boehning's (1992) bound of
    the Hessian, x'x / 2n + penalty = root root', is the identity: a quarter of the steps that it takes on the features
    themselves. The penalty is scikit-learn's 1 / (n C). Give features of mean 0 and std 1.
    Of more dimensions than samples it takes the coordinates of their span, in which the weight lies: the same minimum.
    """
    if len(x) < x.shape[1]:
        basis, coordinates = torch.linalg.qr(x.double().T)
        rows = coordinates.T.to(x.dtype).contiguous()
        for weight, bias in logistic_regression(rows, labels, classes, penalties, tolerance):
            yield (basis @ weight.double()).to(x.dtype), bias
        return
    # float64: a bound of thousands of dimensions has eigenvalues below the smallest penalty, and rounding moves them
    bound = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for part in x.split(ROWS):
        bound += part.double().T @ part.double() / (2 * len(x))
    weight, bias = x.new_zeros(x.shape[1], classes), x.new_zeros(classes).requires_grad_()
    for penalty in penalties:
        root = torch.linalg.cholesky(bound + penalty * torch.eye(len(bound), dtype=bound.dtype, device=x.device))
        root = root.to(x.dtype)
        inner = (root.T @ weight).requires_grad_()
        solver = torch.optim.LBFGS(
            [inner, bias],
            max_iter=MOST_STEPS,
            tolerance_grad=tolerance,
            tolerance_change=tolerance**2,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def objective(solver=solver, inner=inner, root=root, penalty=penalty) -> Tensor:
            solver.zero_grad()
            weight = torch.linalg.solve_triangular(root.T, inner, upper=True)
            loss = cross_entropy(x @ weight + bias, labels) + penalty / 2 * weight.square().sum()
            loss.backward()
            return loss

        solver.step(objective)
        weight = torch.linalg.solve_triangular(root.T, inner.detach(), upper=True)
        yield weight, bias.detach().clone()
