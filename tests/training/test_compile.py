"""Compiled blocks, heads and losses: all of them, whatever their number, with the results of those that are not."""

import pytest
import tiny
import torch


@pytest.fixture
def strict(monkeypatch):
    """Blocks that the compiler would leave as they are, because there are too many, are errors; nothing is built.

    Gives what is compiled: the graphs, one after the other.
    """
    import torch._dynamo

    compile_module, compiled = torch.nn.Module.compile, []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    def compile(module, **options):
        compile_module(module, backend=backend, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
        yield compiled
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it where weights are masked
@pytest.mark.parametrize(
    ("method", "scope", "blocks", "parts"),
    # 8 Learners, each with a block, a head and a loss, in BYOL also with the target's and a predictor. To the compiler
    # there are 8 blocks and those of the target; or 8, dense and masked, of which all but the last are also passed
    # through
    [("byol", "simultaneous", 16, 8 * 6), ("sdclr", "sequential", 30, 8 * 3)],
)
def test_what_is_compiled_trains_as_others_do(strict, tmp_path, method, scope, blocks, parts):
    config = tiny.config(method, scope, train={"length": "8steps"}, encoder={"kind": "resnet18"})
    config = config.model_copy(update={"scope": config.scope.model_copy(update={"cuts": "blocks"})})
    plain = tiny.trainer(config, tmp_path / "plain")
    plain.fit()
    compiled = config.model_copy(update={"train": config.train.model_copy(update={"compile": True})})
    trainer = tiny.trainer(compiled, tmp_path / "compiled")
    trainer.fit()
    inside = [module for learner in trainer.learners for module in learner.modules()]
    assert sum(module._compiled_call_impl is not None for module in inside) == parts
    names = [{getattr(node.target, "__name__", "") for node in graph.graph.nodes} for graph in strict]
    assert sum("conv2d" in one for one in names) == blocks
    assert sum("linear" in one for one in names) >= 4, "the heads of four widths"
    assert any("normalize" in one for one in names), "the loss"
    before, after = tiny.state(plain), tiny.state(trainer)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name].double(), after[name].double(), atol=1e-8) for name in before)
    assert trainer.run.metrics()[0] == plain.run.metrics()[0]
