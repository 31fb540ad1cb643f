from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schema.errors import ConfigError
from schema.parameters import PARAMETERS
from tasks.training.config import PLACES
from tasks.training.kohya import options_of, read_kohya
from tasks.training.kohya_options import NEEDLESS, REFUSED

PLACED: dict[str, Any] = {"pretrained_model_name_or_path": "m", "train_data_dir": "d", "output_dir": "o"}

# Section by section what sd-scripts' argument parsers know of training a LoRA for SD 1.x and XL.
ARGUMENTS = """
network_module network_dim network_alpha network_dropout network_args network_weights dim_from_weights
network_train_unet_only network_train_text_encoder_only scale_weight_norms base_weights base_weights_multiplier
training_comment no_metadata save_model_as
learning_rate unet_lr text_encoder_lr optimizer_type optimizer_args lr_scheduler lr_warmup_steps lr_decay_steps
lr_scheduler_num_cycles lr_scheduler_power lr_scheduler_timescale lr_scheduler_min_lr_ratio lr_scheduler_type
lr_scheduler_args max_train_steps max_train_epochs train_batch_size gradient_accumulation_steps max_grad_norm
gradient_checkpointing cpu_offload_checkpointing mixed_precision full_fp16 full_bf16 save_precision fp8_base
fp8_base_unet xformers sdpa mem_eff_attn torch_compile dynamo_backend seed lowram highvram max_data_loader_n_workers
persistent_data_loader_workers
noise_offset noise_offset_random_strength adaptive_noise_scale multires_noise_iterations multires_noise_discount
ip_noise_gamma ip_noise_gamma_random_strength min_snr_gamma prior_loss_weight v_parameterization zero_terminal_snr
scale_v_pred_loss_like_noise_pred v_pred_like_loss debiased_estimation_loss loss_type huber_schedule huber_c
huber_scale min_timestep max_timestep masked_loss alpha_mask clip_skip max_token_length
resolution enable_bucket min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale resize_interpolation
validation_split validation_seed network_multiplier caption_extension cache_info custom_attributes dataset_repeats
shuffle_caption caption_separator keep_tokens keep_tokens_separator secondary_separator enable_wildcard caption_prefix
caption_suffix caption_dropout_rate caption_dropout_every_n_epochs caption_tag_dropout_rate token_warmup_min
token_warmup_step color_aug flip_aug random_crop face_crop_aug_range cache_latents cache_latents_to_disk vae_batch_size
skip_cache_check cache_text_encoder_outputs cache_text_encoder_outputs_to_disk
save_every_n_epochs save_every_n_steps save_n_epoch_ratio save_last_n_epochs save_last_n_steps
save_last_n_epochs_state save_last_n_steps_state save_state save_state_on_train_end resume initial_epoch initial_step
skip_until_initial_step output_dir output_name sample_every_n_epochs sample_every_n_steps sample_at_first
sample_prompts sample_sampler logging_dir log_with log_prefix log_tracker_name wandb_run_name log_config
console_log_level console_log_file console_log_simple validate_every_n_epochs validate_every_n_steps
max_validation_steps metadata_title metadata_author metadata_description metadata_license metadata_tags
metadata_usage_hint metadata_trigger_phrase in_json vae v2
""".split()

HANDLED = {
    "network_args", "dataset_repeats", "cache_latents_to_disk", "cache_text_encoder_outputs_to_disk",
    "save_n_epoch_ratio", "training_comment",
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_no_argument_of_sd_scripts_is_unknown(name: str) -> None:
    known = name in PARAMETERS or name in PLACES or name in NEEDLESS or name in REFUSED
    assert known or name in HANDLED or name.startswith("metadata_")


@pytest.mark.parametrize("name", sorted({*NEEDLESS, *REFUSED} - set(PARAMETERS)))
def test_what_is_not_done_is_refused_or_told_and_never_ignored(name: str) -> None:
    asked = {**PLACED, name: 7}
    if name in REFUSED:
        with pytest.raises(ConfigError, match=f"{name} is not supported: "):
            read_kohya(asked)
    else:
        assert [note for note in read_kohya(asked)[1] if note.startswith(f"{name} has no effect: ")]
    assert read_kohya({**PLACED, name: None})[1] == []  # asks for nothing


def test_names_defaults_and_lists_are_kohyas() -> None:
    config, notes = read_kohya(
        {
            **PLACED, "network_args": ["conv_dim=8", "conv_alpha=1", "dropout=0.1", "block_lr_zero_threshold=0.1"],
            "optimizer_type": "prodigy", "optimizer_args": ["d_coef=2.0", "betas=(0.9, 0.99)"], "resolution": "512,512",
            "text_encoder_lr": [1e-5, 2e-5], "base_weights": ["a.safetensors", "b.safetensors"],
            "base_weights_multiplier": [0.5, 1.0], "dataset_repeats": 3,
        }
    )  # fmt: skip
    p = config.parameters
    assert (p["conv_dim"], p["conv_alpha"], p["network_dropout"]) == (8, 1.0, 0.1)
    assert (p["optimizer_type"], p["optimizer_args"]) == ("Prodigy", "d_coef=2.0 betas=(0.9,0.99)")
    assert (p["resolution"], p["text_encoder_lr"], p["num_repeats"]) == (512, 1e-5, 3)
    assert (config.texts("base_weights"), config.numbers("base_weights_multiplier"))[1] == [0.5, 1.0]
    assert (p["learning_rate"], p["caption_extension"], p["resize_interpolation"]) == (2e-6, ".caption", None)
    assert (p["max_train_steps"], p["weight_decay"], p["save_precision"]) == (1600, 0.0, "float")
    assert [note.partition(":")[0] for note in notes] == ["text_encoder_lr"]


def test_lycoris_adapts_convolutions_unless_told_otherwise() -> None:
    lycoris = {**PLACED, "network_module": "lycoris.kohya", "network_dim": 8, "network_alpha": 2.0}
    assert read_kohya(lycoris)[0].integer("conv_dim") == 8
    assert read_kohya(lycoris)[0].number("conv_alpha") == 2.0
    assert read_kohya({**lycoris, "network_args": ["conv_dim=0"]})[0].integer("conv_dim") == 0


def test_epochs_go_before_steps_and_ratios_are_of_epochs() -> None:
    config, notes = read_kohya({**PLACED, "max_train_epochs": 10, "max_train_steps": 99, "save_n_epoch_ratio": 4})
    assert config.parameters["max_train_steps"] is None
    assert config.integer("save_every_n_epochs") == 2
    assert notes == ["max_train_steps is not read where there is max_train_epochs"]
    assert read_kohya({**PLACED, "optimizer_type": "AdamW8bit"})[0].number("weight_decay") == 0.01


def test_caches_on_disk_lie_beside_the_output() -> None:
    assert read_kohya(PLACED)[0].cache_dir is None
    assert read_kohya({**PLACED, "cache_latents_to_disk": True})[0].cache_dir == Path("o/cache")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"learning_rat": 1}, "unknown option learning_rat: did you mean learning_rate"),
        ({"network_args": ["convdim=4"]}, "unknown option convdim: did you mean conv_dim"),
        ({"network_args": ["conv_dim"]}, "write name=value"),
        ({"network_args": ["use_tucker=True"]}, "use_tucker is not supported"),
        ({"resolution": "512,768"}, "is no square"),
        ({"resolution": "big"}, "is no number"),
        ({"learning_rate": "1e-4"}, "learning_rate must be of type float"),
        ({"lr_scheduler": "piecewise_constant"}, "lr_scheduler must be one of"),
        ({"color_aug": True, "cache_latents": True}, "set cache_latents = false"),
        ({"sample_prompts": "p.txt", "log_with": "wandb"}, "sample_prompts is not supported.*; log_with is not"),
        ({"save_n_epoch_ratio": 3}, "needs max_train_epochs"),
        ({"output_dir": None}, "output_dir"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_kohya({**PLACED, **options})


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[x]\nlearning_rate = 1e-3\nnetwork_dim = 8\noutput_dir = 'file'\n")
    words = f"--config_file {tmp_path / 'a'} --network_dim 16 --network_args conv_dim=2 --shuffle_caption".split()
    words += ["--pretrained_model_name_or_path=m", "--train_data_dir", "d", "--base_weights", "x"]
    config, _ = read_kohya(options_of(words))
    assert (config.number("learning_rate"), config.integer("network_dim"), config.integer("conv_dim")) == (1e-3, 16, 2)
    assert config.flag("shuffle_caption")
    assert config.output_dir == Path("file")
    with pytest.raises(ConfigError, match="before any option"):
        options_of(["word"])


DATASETS: dict[str, Any] = {
    "general": {"shuffle_caption": True, "keep_tokens": 2, "resolution": 64},
    "datasets": [
        {
            "keep_tokens": 1, "batch_size": 3,
            "subsets": [
                {"image_dir": "a", "keep_tokens": 0, "shuffle_caption": False},
                {"image_dir": "b", "is_reg": True, "class_tokens": "girl"},
            ],
        },
        {"resolution": [32, 32], "enable_bucket": True, "subsets": [{"image_dir": "c", "num_repeats": 4}]},
    ],
}  # fmt: skip


def test_each_option_of_a_subset_is_looked_up_from_it_outwards(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(json.dumps(DATASETS))
    config, notes = read_kohya({**PLACED, "dataset_config": str(path), "keep_tokens": 9, "caption_dropout_rate": 0.5})
    a, b, c = config.subsets
    names = ("shuffle_caption", "keep_tokens", "resolution", "train_batch_size", "enable_bucket", "num_repeats")
    found = [tuple(s.parameters[name] for name in names) for s in (a, b, c)]
    assert found == [(False, 0, 64, 3, False, 1), (True, 1, 64, 3, False, 1), (True, 2, 32, 1, True, 4)]
    assert [(s.dataset, s.is_reg, s.class_tokens, s.nested) for s in (a, b, c)] == [
        (0, False, None, False), (0, True, "girl", False), (1, False, None, False),
    ]  # fmt: skip
    assert all(s.parameters["caption_dropout_rate"] == 0.5 for s in (a, b, c))
    assert notes == ["train_data_dir is not read where there is a dataset_config"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[general]\nshufle_caption = true", "unknown option shufle_caption: did you mean shuffle_caption"),
        ("[[datasets]]\nimage_dir = 'a'", "unknown option image_dir"),
        ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 1", "has no image_dir"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nresolution = 3", "unknown option resolution"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nis_reg = true", "no subset to train on"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nkeep_tokens = 'x'", "keep_tokens must be of type int"),
        ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\nface_crop_aug_range = '1,2'", "is not supported"),
        ("x = 1", "unknown option x"),
    ],
)
def test_what_is_wrong_in_a_dataset_config_is_said(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_kohya({**PLACED, "dataset_config": str(tmp_path / "d.toml")})
