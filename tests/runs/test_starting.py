"""Runs that start from weights: equal to the source's own forward before the first step, and kept for ever."""

import shutil

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import twinblock
from twinblock.core.errors import InputError
from twinblock.methods.learner import parts_of
from twinblock.runs.run import STARTED, Run
from twinblock.training.trainer import Trainer

PIXELS = np.random.Generator(np.random.PCG64(0)).integers(0, 255, (48, 32, 32, 3), dtype=np.uint8)
DATA = (PIXELS, np.arange(48) % 3)
SMALL = ["data.batch=16", "train.length=2steps", "projector.dims=[16,8]", "optim.lr=0.5"]
SCOPES = ("end_to_end", "blockwise", "overlapping")
TARGETS = ("{kind: shared}", "{kind: ema, momentum: 0.9}", "{kind: pruned, ratio: 0.5}")
X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def pretrain(out, weights, *overrides, kind="test_resnet", data=DATA, **more):
    fields = {"kind": kind, **({} if weights is None else {"weights": str(weights)})}
    return twinblock.pretrain(
        "simclr", data=data, encoder=fields, out=out, overrides=[*SMALL, *overrides], quiet=True, **more
    )


def network(kind: str) -> torch.nn.Module:
    """Of timm, with weights and statistics that no drawing of ours gives."""
    torch.manual_seed(5)
    return trained(timm.create_model(kind))


def features(source: torch.nn.Module) -> torch.Tensor:
    """Of a network of timm, before its classifier."""
    with torch.no_grad():
        return source.forward_head(source.forward_features(X), pre_logits=True)


def trained(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor) if "var" in name else 0.05 * torch.randn_like(tensor))
    return module.eval()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Where published weights lie, with some of timm and torchvision."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    save_file(network("test_resnet").state_dict(), path)
    return path


def same(encoder, source) -> bool:
    with torch.no_grad():
        return torch.equal(encoder.eval()(X), source)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("target", TARGETS)
def test_it_begins_as_the_source_in_every_scope_and_with_every_target(tmp_path, file, scope, target, monkeypatch):
    expected = features(network("test_resnet"))
    started = []

    class Seen(Trainer):
        def resume(self):
            with torch.no_grad():
                started.append(self.encoder.eval()(X))
                learner = parts_of(self.learners[0])[0]
                for average in (m for m in learner.modules() if type(m).__name__ == "EMA"):
                    online = learner.network.state_dict()
                    started.append(all(torch.equal(t, online[n]) for n, t in average.average.state_dict().items()))
            raise InputError("seen")

    monkeypatch.setattr("twinblock.training.trainer.Trainer", Seen)
    with pytest.raises(InputError, match="seen"):
        pretrain(tmp_path / "run", file, f"scope.kind={scope}", f"target={target}", "train.precision=fp32")
    run = Run(tmp_path / "run")
    assert torch.equal(started[0], expected) and all(x is True for x in started[1:])
    assert same(run.starting_encoder(), expected)
    assert not same(run.untrained_encoder(), expected)


def test_published_weights_of_timm_with_their_mean_and_std(tmp_path, hub, monkeypatch):
    source = network("test_resnet")
    save_file(source.state_dict(), hub / "test_resnet.r160_in1k.safetensors")
    for name in ("pretrained", "timm:r160_in1k", "timm:test_resnet.r160_in1k"):
        run = pretrain(tmp_path / name.replace(":", "_"), name)
        assert same(run.starting_encoder(), features(source))
        assert run.config.encoder.weights == "timm:test_resnet.r160_in1k" if name == "pretrained" else name
        assert run.config.data.mean == tuple(source.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5)
    given = pretrain(tmp_path / "given", "pretrained", "data.mean=[0.1,0.2,0.3]")
    assert given.config.data.mean == (0.1, 0.2, 0.3) and given.config.data.std == (0.5, 0.5, 0.5)
    pretrain(tmp_path / "pretrained", "pretrained")  # the same command again: nothing to do
    auto = pretrain(tmp_path / "auto", "timm:test_resnet.r160_in1k", kind="auto")
    assert auto.config.encoder.kind == "test_resnet"


def test_published_weights_of_torchvision(tmp_path, hub):
    torch.manual_seed(5)
    source = trained(torchvision.models.shufflenet_v2_x0_5())
    name = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url.rpartition("/")[2]
    torch.save(source.state_dict(), hub / name)
    run = pretrain(tmp_path / "run", "pretrained", kind="torchvision/shufflenet_v2_x0_5")
    source.fc = torch.nn.Identity()
    assert same(run.starting_encoder(), source(X).detach())
    assert run.config.data.mean == (0.485, 0.456, 0.406)


def test_a_vit_of_another_size_and_other_channels(tmp_path, hub):
    """As timm itself adapts them."""
    source = network("test_vit")
    save_file(source.state_dict(), hub / "test_vit.r160_in1k.safetensors")
    grey = PIXELS[..., :1]
    run = pretrain(tmp_path / "run", "pretrained", "data.channels=1", kind="test_vit", data=(grey, DATA[1]))
    theirs = timm.create_model(
        "test_vit", pretrained=True, pretrained_cfg_overlay={"state_dict": source.state_dict()}, num_classes=0,
        in_chans=1, img_size=32, global_pool="avg", fc_norm=False,
    ).eval()  # fmt: skip
    with torch.no_grad():
        torch.testing.assert_close(run.starting_encoder()(X[:, :1]), theirs(X[:, :1]), rtol=1e-5, atol=1e-6)
    assert run.config.data.mean != (0.5,)  # those are of three channels


def test_a_run_starts_another_run_and_brings_its_network(tmp_path, file):
    first = pretrain(tmp_path / "first", file, "data.mean=[0.1,0.2,0.3]")
    second = pretrain(tmp_path / "second", first.path, kind="auto")
    assert same(second.starting_encoder(), first.encoder()(X).detach())
    assert second.config.encoder.kind == "test_resnet" and second.config.data.mean == (0.1, 0.2, 0.3)
    small = twinblock.pretrain(
        "simclr", data=DATA, encoder={"kind": "resnet10", "width": 8, "stem": "cifar"}, out=tmp_path / "small",
        overrides=SMALL, quiet=True,
    )  # fmt: skip
    third = pretrain(tmp_path / "third", small.path, kind="auto")
    assert same(third.starting_encoder(), small.encoder()(X).detach())
    assert (third.config.encoder.width, third.config.encoder.stem) == (8, "cifar")


def test_a_changed_or_vanished_file_does_not_change_a_run(tmp_path, file):
    own = tmp_path / "own.safetensors"
    shutil.copy(file, own)
    whole = pretrain(tmp_path / "whole", own, "train.length=4steps")
    half = tmp_path / "half"
    with pytest.raises(InputError):  # stopped by a disk that is full, say
        stop_at(2, lambda: pretrain(half, own, "train.length=4steps", "train.checkpoint_every=1steps"))
    save_file({name: torch.zeros_like(t) for name, t in network("test_resnet").state_dict().items()}, own)
    run = pretrain(half, own, "train.length=4steps", "train.checkpoint_every=1steps")
    own.unlink()
    expected = whole.encoder().state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in run.encoder().state_dict().items())
    assert same(Run(half).starting_encoder(), whole.starting_encoder()(X).detach())
    rows = {row["features"]: row for row in twinblock.evaluate(half, DATA, quiet=True)}
    assert list(rows)[:4] == ["encoder", "raw pixels", "untrained encoder", "starting weights"]


def stop_at(step: int, train):
    with pytest.MonkeyPatch.context() as patch:
        next_of = Trainer.next_of

        def stops(self, batches):
            if self.step == step:
                raise InputError("stopped")
            return next_of(self, batches)

        patch.setattr(Trainer, "next_of", stops)
        train()


def test_without_what_a_run_began_with_another_file_is_refused(tmp_path, file):
    """Killed before it kept the weights, a run takes only the same file."""
    own = tmp_path / "own.safetensors"
    shutil.copy(file, own)
    with pytest.raises(InputError, match="stopped"):
        stop_at(0, lambda: pretrain(tmp_path / "run", own))
    (tmp_path / "run" / STARTED).unlink()
    expected = features(network("test_resnet"))
    save_file({name: torch.zeros_like(t) for name, t in network("test_resnet").state_dict().items()}, own)
    with pytest.raises(InputError, match=r"not the file that this run began with.*SHA-256"):
        pretrain(tmp_path / "run", own)
    shutil.copy(file, own)
    assert same(pretrain(tmp_path / "run", own).starting_encoder(), expected)


@pytest.mark.parametrize(("weights", "said"), [
    ("imagenet", r"encoder.weights=imagenet: there is no such file or run; encoder.weights is pretrained, timm:TAG"),
    ("timm:", "timm: and then a tag"),
    ("timm:a2_in1k", r"timm has no weights 'test_resnet.a2_in1k'; there are test_resnet.r160_in1k"),
    ("pretrained", r"test_resnet.r160_in1k is not on this machine and cannot be downloaded \(.*\): put http.*"
                   r"model.safetensors there as .*checkpoints/test_resnet.r160_in1k.safetensors"),
])  # fmt: skip
def test_what_cannot_be_had_is_one_line(tmp_path, hub, weights, said):
    with pytest.raises(InputError, match=said):
        pretrain(tmp_path / "run", weights)
    assert not (tmp_path / "run").exists()


def test_the_sha256_is_asked_for_and_kept(tmp_path, file):
    with pytest.raises(InputError, match="SHA-256"):
        pretrain(tmp_path / "run", file, f"encoder.weights_sha256={'a' * 64}")
    import hashlib

    run = pretrain(tmp_path / "run", file)
    assert run.config.encoder.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
