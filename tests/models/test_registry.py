"""Models by name and from the configuration."""

from dataclasses import asdict

import pytest
import torch

from models.registry import (
    MODELS,
    TimmOptions,
    build,
    build_for_run,
    build_model,
    compile_mode,
    default_classes,
    model_options,
    prepare,
    preprocessing_of,
)
from models.swin import SwinOptions
from models.swin_v2 import SwinV2Options
from tests.tools.builders import MOE, SMALL, configured, small
from tests.tools.errors import raises
from utils.cost import check_compiler, describe_model
from utils.distributed.world import World
from utils.errors import ConfigError
from utils.preprocessing import Preprocessing


@pytest.mark.parametrize("family", sorted(MODELS))
def test_a_family_is_built_from_keywords_or_from_its_options(family):
    by_name = small(family)
    torch.manual_seed(0)
    experts = MOE if family == "swin_moe" else {}
    built = build(MODELS[family].Options(**SMALL, **experts, drop_path_rate=0.0), num_classes=5)
    assert type(by_name) is type(built) is MODELS[family] and built.options.num_classes == 5
    assert by_name.options == built.options
    assert all(torch.equal(a, b) for a, b in zip(by_name.parameters(), built.parameters(), strict=True))


def test_lists_are_taken_as_sequences_too():
    assert small(depths=[1, 1], num_heads=[2, 4]).options == small(depths=(1, 1), num_heads=(2, 4)).options


def test_unknown_families_name_the_nearest():
    with raises(ConfigError, "MODEL.TYPE", "'swinn'", "did you mean swin"):
        build_model("swinn")
    with raises(ConfigError, "MODEL.TYPE", "did you mean swinv2"):
        model_options(configured(MODEL__TYPE="swin_v2"))


def test_the_options_are_those_of_the_section_of_the_family():
    options = model_options(
        configured(
            "swinv2_tiny.yaml",
            DATA__IMG_SIZE=[192, 256],
            MODEL__NUM_CLASSES=11,
            MODEL__DROP_RATE=0.1,
            MODEL__SWINV2__QKV_BIAS=False,
            MODEL__SWINV2__PRETRAINED_WINDOW_SIZES=[4, 4, 4, 4],
            MODEL__SWIN__EMBED_DIM=7,
        )
    )
    assert options == SwinV2Options(
        img_size=(192, 256),
        num_classes=11,
        window_size=options.window_size,
        drop_rate=0.1,
        drop_path_rate=options.drop_path_rate,
        qkv_bias=False,
        pretrained_window_sizes=(4, 4, 4, 4),
    )
    scaled = model_options(configured(MODEL__SWIN__QK_SCALE=0.5, MODEL__SWIN__APE=True, MODEL__SWIN__PATCH_NORM=False))
    assert isinstance(scaled, SwinOptions) and scaled.embed_dim == 96
    assert (scaled.qk_scale, scaled.ape, scaled.patch_norm) == (0.5, True, False)


def test_without_data_the_classes_are_configured_or_follow_from_the_dataset():
    assert default_classes(configured()) == 1000
    assert default_classes(configured(DATA__DATASET="imagenet22K")) == 21841
    assert default_classes(configured(DATA__DATASET="imagenet22K", MODEL__NUM_CLASSES=7)) == 7


def test_the_model_of_a_run_is_prepared_as_configured_and_depends_on_the_seed_only(tiny_yaml, caplog):
    def built(**overrides):
        cfg = configured(tiny_yaml, **overrides)
        with caplog.at_level("INFO"):
            return build_for_run(cfg, lambda: build(model_options(cfg), 3), World())

    one = built(TRAIN__FREEZE="1", TRAIN__USE_CHECKPOINT=True)
    torch.rand(5)
    same, other = built(), built(SEED=1)
    assert one.num_classes == 3 and all(stage.grad_checkpointing for stage in one.stages())
    assert not any(p.requires_grad for p in one.stages()[0].parameters())
    assert all(p.requires_grad for p in one.stages()[1].parameters())
    assert torch.equal(one.head.weight, same.head.weight) and not torch.equal(one.head.weight, other.head.weight)
    assert not any(stage.grad_checkpointing for stage in same.stages())
    assert caplog.messages[0].startswith("model: SwinTransformer: ") and "at 32x32" in caplog.messages[0]


@pytest.fixture(scope="module")
def vit():
    return build_model("timm", name="vit_tiny_patch16_224", img_size=(64, 32), num_classes=3, drop_path_rate=0.1)


def test_models_of_timm_are_built_by_name(vit):
    assert vit(torch.randn(1, 3, 64, 32)).shape == (1, 3)
    assert build_model("timm", model_name="resnet10t", in_chans=4).conv1[0].in_channels == 4
    cfg = configured(MODEL__TYPE="timm", MODEL__TIMM__NAME="resnet500")
    with raises(ConfigError, "MODEL.TIMM.NAME", "'resnet500'", "did you mean resnet50"):
        model_options(cfg)


def test_only_swin_models_can_be_frozen(vit):
    prepare(vit, checkpointing=True)
    assert vit.grad_checkpointing
    with raises(ConfigError, "TRAIN.FREEZE", "Swin", "none"):
        prepare(vit, freeze="all")


def test_a_timm_model_of_a_fixed_size_takes_that_of_the_task():
    timm = {"MODEL__TYPE": "timm", "DATA__IMG_SIZE": 64, "TEST__IMG_SIZE": [96, 32]}
    fixed = {**timm, "MODEL__TIMM__NAME": "vit_tiny_patch16_224"}
    assert model_options(configured(**fixed, EVAL_MODE=True, MODEL__RESUME="w.pth")).img_size == (96, 32)
    with raises(ConfigError, "TEST.IMG_SIZE", "vit_tiny_patch16_224"):
        model_options(configured(**fixed))
    free = model_options(configured(**timm, MODEL__TIMM__NAME="resnet10t", MODEL__DROP_PATH_RATE=0.3))
    assert asdict(free) == {
        "name": "resnet10t",
        "img_size": (64, 64),
        "num_classes": 0,
        "in_chans": 3,
        "drop_rate": 0.0,
        "drop_path_rate": 0.3,
    }


def test_a_timm_model_without_stochastic_depth_is_named():
    options = TimmOptions(name="vgg11", img_size=(32, 32), num_classes=2, drop_path_rate=0.1)
    with torch.device("meta"):  # 133 million parameters
        with raises(ConfigError, "MODEL.DROP_PATH_RATE", "vgg11"):
            build(options)
        assert build_model("timm", name="vgg11", num_classes=2).num_classes == 2


def test_images_that_a_timm_model_cannot_take_are_rejected():
    model = build_model("timm", name="convnext_atto", num_classes=2)
    with pytest.raises(ConfigError, match=r"(?=.*\b1x1\b)(?=.*TEST\.IMG_SIZE)"):
        describe_model(model, (1, 1))


def test_preprocessing_is_the_papers_or_that_of_the_timm_model():
    assert preprocessing_of(SwinOptions()) == Preprocessing(interpolation="bicubic")
    half, one = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    assert preprocessing_of(TimmOptions(name="vit_tiny_patch16_224")) == Preprocessing(half, one, 0.9, "bicubic")


def test_chosen_stages_are_checkpointed():
    model = small("swin")
    prepare(model, checkpointing=True, stages=[1])
    assert [stage.grad_checkpointing for stage in model.stages()] == [False, True]
    with raises(ConfigError, "TRAIN.CHECKPOINT_STAGES", "stage 2", "0 to 1"):
        prepare(model, checkpointing=True, stages=[0, 2])
    with raises(ConfigError, "TRAIN.CHECKPOINT_STAGES", "[]"):
        prepare(torch.nn.Linear(1, 1), checkpointing=True, stages=[0])


def test_a_compiled_model_keeps_its_names(tiny_yaml, monkeypatch):
    """Compiled in place, after its cost was counted."""
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda *a: pytest.fail("called") or call(*a))
    cfg = configured(tiny_yaml, TRAIN__COMPILE=True)
    model = build_for_run(cfg, lambda: build(model_options(cfg), 4), World())
    assert model._compiled_call_impl is not None
    assert set(model.state_dict()) == set(build(model_options(cfg), 4).state_dict())


@pytest.mark.parametrize(
    ("device", "size", "options", "mode"),
    [
        ("cpu", 1, {}, "default"),
        ("cuda", 1, {}, "reduce-overhead"),
        ("cuda", 2, {}, "default"),
        ("cuda", 1, {"TRAIN__ACCUMULATION_STEPS": 2}, "default"),
        ("cuda", 1, {"TRAIN__GLOBAL_BATCH_SIZE": 1024}, "default"),
        ("cuda", 1, {"TRAIN__GLOBAL_BATCH_SIZE": 128}, "reduce-overhead"),
        ("cuda", 2, {"TRAIN__COMPILE_MODE": "reduce-overhead"}, "reduce-overhead"),
        ("cpu", 1, {"TRAIN__COMPILE_MODE": "max-autotune"}, "max-autotune"),
    ],
)
def test_a_single_gpu_gets_cuda_graphs_unless_it_accumulates(device, size, options, mode):
    assert compile_mode(configured(**options), World(size=size, device=torch.device(device))) == mode


def test_cuda_graphs_that_would_have_to_accumulate_are_rejected():
    cfg = configured(TRAIN__COMPILE_MODE="reduce-overhead", TRAIN__ACCUMULATION_STEPS=2)
    with raises(ConfigError, "TRAIN.COMPILE_MODE", "accumulate"):
        compile_mode(cfg, World(device=torch.device("cuda")))


def test_without_a_compiler_compiling_is_rejected(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match=r"(?=.*TRAIN\.COMPILE)(?=.*g\+\+)"):
        check_compiler(torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="triton"):
        check_compiler(torch.device("cuda"))
