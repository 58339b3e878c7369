"""The long-tailed study: its arms can be composed, and its tables have the columns that the published ones have."""

from pathlib import Path

import pytest

from twinblock.config.recipes import compose
from twinblock.studies import longtail
from twinblock.studies.study import Options


def composed(data: str, *fields: str):
    arms = longtail._arms(Options(Path("out"), 1, (f"data={data}", *fields)))
    return [compose(arm.recipe, overrides=[o.replace("{seed}", "0") for o in arm.overrides]) for arm in arms]


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_photographs_are_reduced_where_there_is_no_gpu_and_no_length_asked_for(monkeypatch, data):
    published = [(None, "cifar", 512, "2000epochs")] * 3
    small = [(16, "cifar_stride2", 128, "60epochs")] * 3

    def sizes(*fields: str):
        runs = composed(data, *fields)
        return [(c.encoder.width, c.encoder.stem, c.data.batch, str(c.train.length)) for c in runs]

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert sizes() == small and sizes("train.length=2000epochs") == published
    assert {str(c.train.length) for c in composed("photodigits")} == {"1000steps", "1500steps"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert sizes() == published


@pytest.mark.parametrize(("data", "arms"), [("photodigits", 7), ("cifar10", 3), ("cifar100", 3)])
def test_arms_and_columns(tmp_path, monkeypatch, data, arms):
    def carry_out(given, measure, options):
        configs = {
            arm.name: compose(arm.recipe, overrides=[o.replace("{seed}", "7") for o in arm.overrides]) for arm in given
        }
        assert len(configs) == arms
        assert {(c.data.longtail.split, c.data.longtail.seed) for c in configs.values()} == {(7, 7)}
        assert {c.data.longtail.kind for c in configs.values()} == {"exp", "balanced"}
        pruned = {name for name, c in configs.items() if c.target.kind == "pruned"}
        assert pruned == {name for name in configs if name.startswith("SDCLR")}
        same = [configs[name].model_dump(exclude={"target", "projector"}) for name in longtail.OVERLAID]
        assert same[0] == same[1]  # in all but the target, and on CIFAR the head
        return [{"arm": name, "seed": 0, "seconds": 1.0, "all": 50.0, "50-shot all": 40.0} for name in configs]

    monkeypatch.setattr(longtail, "carry_out", carry_out)
    longtail.reproduce(Options(tmp_path, 1, (f"data={data}",)))
    header, _, *rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert len(rows) == arms
    assert ("100-shot all | 50-shot all" in header) == (data == "cifar100") != ("few-shot all" in header)
    (sdclr,) = (row for row in rows if row.startswith("| SDCLR |"))
    assert ("40.0" in sdclr, "55.0, 49.7, 45.6" in sdclr) == (data == "cifar100",) * 2
