"""Converted backbones in dense prediction: maps of any size, exported, under torchvision's, smp's and mm's heads."""

import copy
import importlib.util
from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import ecoformer.models  # noqa: F401  registers the converted models
from ecoformer import EcoFormerSpec, MSASpec, convert, fit_hashes
from ecoformer.energy import count
from ecoformer.kinds import DistilledSpec

SMALL = {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 40, 64), "mlp_ratios": (2, 2, 2, 2)}
TWINS = {"depths": (2, 1, 1, 1), "embed_dims": (16, 32, 64, 64), "num_heads": (2, 2, 4, 4), "mlp_ratios": (2, 2, 2, 2)}
VIT = {"img_size": 64, "embed_dim": 48, "num_heads": 2, "depth": 3, "dynamic_img_size": True}
# name, its options, channels and reductions of its maps
BACKBONES = {
    "pvt": ("pvt_v2_b0", SMALL, [16, 32, 40, 64], [4, 8, 16, 32]),
    "twins": ("twins_svt_small", TWINS, [16, 32, 64, 64], [4, 8, 16, 32]),
    "vit": ("vit_tiny_patch16_224", VIT, [48, 48, 48], [16, 16, 16]),
}
KINDS = {
    "msa": MSASpec(),
    "ecoformer": EcoFormerSpec(num_bits=4, num_anchors=4, top_k=2, fit_steps=2),
    "distilled": DistilledSpec(num_features=4, fit_steps=5),
}


def converted(backbone, kind, **others):
    """Features of a converted backbone, with codes that are fitted where it has any."""
    torch.manual_seed(0)
    name, options, *_ = BACKBONES[backbone]
    model = timm.create_model(name, features_only=True, **(options | others)).eval()
    report = convert(model, KINDS[kind], img_size=64)
    assert report.replaced or (backbone, kind) == ("vit", "msa")  # which it is
    fit_hashes(model, torch.randn(2, 3, 64, 64), seed=0)
    return model


@pytest.fixture(scope="module", params=[(b, k) for b in BACKBONES for k in KINDS], ids="-".join)
def features(request):
    return *request.param, converted(*request.param)


def test_maps_are_where_feature_info_says_at_every_size(features):
    backbone, _, model = features
    *_, channels, reductions = BACKBONES[backbone]
    assert model.feature_info.channels() == channels and model.feature_info.reduction() == reductions
    stock = timm.create_model(BACKBONES[backbone][0], features_only=True, **BACKBONES[backbone][1]).eval()
    sizes = ((64, 64), (96, 160)) if backbone == "vit" else ((64, 64), (96, 160), (91, 133))  # 16 px make a token
    for size in sizes:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            maps, one = model(images), model(images[1:])
            assert [found.shape for found in maps] == [expected.shape for expected in stock(images)]
        for found, alone, width, reduction in zip(maps, one, channels, reductions, strict=True):
            assert found.shape[1] == width and found.isfinite().all()
            assert [-(-side // reduction) for side in size] == list(found.shape[2:]) or backbone == "twins"
            torch.testing.assert_close(found[1:], alone, rtol=1e-3, atol=1e-4)  # no image leans on another
        assert count(model, size).uncounted == []


def test_gradients_reach_everything_and_checkpoints_load(features):
    backbone, kind, model = features
    model = copy.deepcopy(model).train()
    sum(found.square().mean() for found in model(torch.randn(2, 3, 64, 96))).backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not {name for name in unused if ".attn." in name}, "attention that nothing trains"
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    name, options, *_ = BACKBONES[backbone]
    other = timm.create_model(name, features_only=True, **options)
    convert(other, KINDS[kind])
    other.load_state_dict(model.state_dict())  # the codes too: nothing is fitted here
    images = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        for found, expected in zip(other.eval()(images), model.eval()(images), strict=True):
            assert torch.equal(found, expected)


class Maps(nn.Module):
    """Exporters want a tuple."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return tuple(self.model(x))


def program(model):
    """The maps with batch, height and width free."""
    sizes = {0: torch.export.Dim("batch", min=1)}
    sizes |= {2: 32 * torch.export.Dim("rows", min=1), 3: 32 * torch.export.Dim("columns", min=1)}
    with torch.no_grad():
        return torch.export.export(Maps(model), (torch.randn(2, 3, 64, 96),), dynamic_shapes=(sizes,), strict=False)


def differences(run, model):
    for shape in ((1, 3, 64, 64), (3, 3, 128, 96)):
        images = torch.randn(shape)
        with torch.no_grad():
            yield from (float((a - b).abs().max()) for a, b in zip(run(images), model(images), strict=True))


@pytest.mark.parametrize("kind", ["ecoformer", "distilled"])
def test_one_exported_program_gives_the_maps_of_every_size(kind):
    model = converted("pvt", kind, depths=(0, 1, 0, 1))
    assert max(differences(program(model).module(), model)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ecoformer", "distilled"])
def test_one_onnx_file_gives_the_maps_of_every_size(kind, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is of the extra 'export'")
    import onnxruntime

    model = converted("pvt", kind)
    torch.onnx.export(program(model), dynamo=True).save(tmp_path / "maps.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "maps.onnx", providers=["CPUExecutionProvider"])

    def run(images):
        return map(torch.from_numpy, session.run(None, {session.get_inputs()[0].name: images.numpy()}))

    assert max(differences(run, model)) < 1e-4


class Pyramid(nn.Module):
    """As torchvision's BackboneWithFPN, over a list of maps."""

    def __init__(self, body):
        super().__init__()
        self.body, self.out_channels = body, 16
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), self.out_channels, LastLevelMaxPool())

    def forward(self, x):
        return self.fpn(OrderedDict((str(number), found) for number, found in enumerate(self.body(x))))


@pytest.mark.parametrize("kind", KINDS)
def test_torchvision_detects_with_it(kind):
    body = timm.create_model("pvt_v2_b0", features_only=True, **SMALL)
    anchors = AnchorGenerator(tuple((8 * 2**level,) for level in range(5)), ((1.0,),) * 5)
    detector = RetinaNet(Pyramid(body), num_classes=3, min_size=64, max_size=96, anchor_generator=anchors)
    convert(detector, KINDS[kind])
    images = [torch.rand(3, 64, 80), torch.rand(3, 57, 90)]
    fit_hashes(detector, torch.rand(2, 3, 64, 96), seed=0)
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])} for _ in images]
    weight = next(layer for name, layer in detector.named_parameters() if ".attn.proj.weight" in name)
    before = weight.detach().clone()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
    sum(detector.train()(images, targets).values()).backward()
    optimizer.step()
    assert not torch.equal(weight, before) and weight.isfinite().all()
    with torch.no_grad():
        for found in detector.eval()(images):
            assert found["boxes"].shape[1] == 4 and found["scores"].isfinite().all()
    assert count(detector.backbone, (64, 96)).has_attention


@pytest.mark.parametrize("kind", KINDS)
def test_segmentation_models_pytorch_segments_with_it(kind):
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        pytest.skip("segmentation_models_pytorch is not installed; nothing here needs it")
    import segmentation_models_pytorch as smp

    model = smp.FPN("tu-pvt_v2_b0", encoder_weights=None, classes=5)
    report = convert(model, KINDS[kind], img_size=64)
    assert {change.stage for change in report.replaced} == {1, 2, 3}  # the last is softmax attention already
    fit_hashes(model, torch.randn(2, 3, 64, 64), seed=0)
    out = model.train()(torch.randn(2, 3, 64, 96))
    assert out.shape == (2, 5, 64, 96)
    out.square().mean().backward()
    assert model.encoder.model.stages_0.blocks[0].attn.proj.weight.grad.abs().sum() > 0
    assert count(model, (480, 640)).uncounted == []


class TIMMBackbone(nn.Module):
    """As the class of this name in OpenMMLab's toolboxes: a model by its name, and a tuple of maps."""

    def __init__(self, model_name, features_only=True, pretrained=False, in_channels=3, **kwargs):
        super().__init__()
        self.features_only = features_only
        self.timm_model = timm.create_model(
            model_name=model_name, features_only=features_only, pretrained=pretrained, in_chans=in_channels, **kwargs
        )
        if hasattr(self.timm_model, "reset_classifier"):
            self.timm_model.reset_classifier(0, "")
        self.feature_info = getattr(self.timm_model, "feature_info", None)

    def forward(self, x):
        return tuple(self.timm_model(x)) if self.features_only else (self.timm_model.forward_features(x),)


@pytest.mark.parametrize(("name", "options"), [("pvt_v2_b0_ecoformer", SMALL), ("twins_svt_small_msa", TWINS)])
def test_mm_wrappers_take_it_by_name(name, options):
    """Codes come with a checkpoint, or are fitted through the wrapper."""
    backbone = TIMMBackbone(name, out_indices=(1, 2, 3), in_channels=1, **options)
    images, channels = torch.randn(1, 1, 96, 128), options["embed_dims"][1:]
    fit_hashes(backbone, images, seed=0)
    with torch.no_grad():
        shapes = [tuple(found.shape) for found in backbone.eval()(images)]
    assert tuple(backbone.feature_info.channels()) == channels
    assert shapes == [(1, width, 96 // 2**n, 128 // 2**n) for width, n in zip(channels, (3, 4, 5), strict=True)]
    whole = TIMMBackbone(name, features_only=False, **options)
    fit_hashes(whole, torch.randn(1, 3, 96, 128), seed=0)
    (tokens,) = whole.eval()(torch.randn(1, 3, 96, 128))
    assert channels[-1] in tokens.shape
