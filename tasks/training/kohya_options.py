"""List the options of sd-scripts that are not parameters of ours, each with what happens to it.

Names are from the argument parsers of sd-scripts 0.10 and of LyCORIS 4.
"""

from __future__ import annotations

NEUTRAL: tuple[object, ...] = (None, False, 0, "", "no", [])
"""Values that switch an option off."""


def _each(sentences: dict[str, str]) -> dict[str, str]:
    return {name: sentence for sentence, names in sentences.items() for name in names.split()}


NEEDLESS = _each(
    {
        "pictures and weights are held in memory once, without workers": (
            "max_data_loader_n_workers persistent_data_loader_workers lowram highvram disable_mmap_load_safetensors"
        ),
        "caches are keyed by content and never stale": "cache_info skip_cache_check vae_batch_size",
        "the trainer picks the fastest way itself": "mem_eff_attn torch_compile dynamo_backend diffusers_xformers",
        "events.jsonl tells each step and epoch": (
            "logging_dir log_prefix log_tracker_name log_tracker_config log_config console_log_level console_log_file "
            "console_log_simple wandb_run_name"
        ),
        "the state is always saved, and the same command goes on with it": (
            "save_state save_state_on_train_end save_last_n_epochs_state save_last_n_steps_state"
        ),
        "what frozen text encoders say is always remembered": "cache_text_encoder_outputs",
        "the VAE always computes in 32 bits": "no_half_vae",
        "the tokenizer is the base model's own": "tokenizer_cache_dir",
        "nothing here reads them": "custom_attributes",
        "it says nothing without sample_prompts": "sample_sampler",
    }
)
"""Options that need no support, each with the reason."""

REFUSED = _each(
    {
        "pictures are drawn by a campaign, not while training alone: remove it": (
            "sample_prompts sample_every_n_epochs sample_every_n_steps sample_at_first"
        ),
        "there is no tracker: read events.jsonl": "log_with wandb_api_key",
        "all files are kept: remove those you do not want yourself": "save_last_n_epochs save_last_n_steps",
        "the same command resumes by itself": "resume initial_epoch initial_step skip_until_initial_step",
        "use mixed_precision and gradient_checkpointing": "fp8_base fp8_base_unet cpu_offload_checkpointing",
        "validation is at each epoch that is saved": (
            "validate_every_n_epochs validate_every_n_steps max_validation_steps"
        ),
        "captions are read from files beside the pictures": "in_json metadata_file dataset_class",
        "up and down have one learning rate": (
            "loraplus_lr_ratio loraplus_unet_lr_ratio loraplus_text_encoder_lr_ratio"
        ),
        "choose one of the schedules of lr_scheduler": "lr_scheduler_type lr_scheduler_args",
        "it needs places of faces in the files' names: cut the pictures beforehand": "face_crop_aug_range",
        "pictures have no masks of their own: use alpha_mask and transparency": "masked_loss conditioning_data_dir",
        "a file always tells how it was made": "no_metadata",
        "only 1 is supported": "network_multiplier",
        "only safetensors files are written": "save_model_as",
        "the base model's own VAE is used: put yours into its folder": "vae",
        "training starts at once: remove it": "debug_dataset output_config",
        "only Stable Diffusion 1.x and XL are supported": "v2",
        'write optimizer_type = "AdamW8bit"': "use_8bit_adam",
        'write optimizer_type = "Lion"': "use_lion_optimizer",
        "nothing is sent to a hub": (
            "huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_token "
            "huggingface_repo_visibility save_state_to_huggingface resume_from_huggingface async_upload"
        ),
        "it belongs to other trainers of sd-scripts": (
            "deepspeed zero_stage fused_backward_pass weighted_captions ddp_timeout ddp_gradient_as_bucket_view"
        ),
        "one adapter is trained for all noise levels and captions": "token_string init_word use_object_template",
        "leave it out: conv_dim says whether 3x3 convolutions are adapted": "preset",
        "of LyCORIS' further options only those in docs/parameters.md are supported": (
            "use_tucker use_cp use_conv_cp train_norm use_scalar rs_lora bypass_mode unbalanced_factorization "
            "rank_dropout_scale constraint rescaled block_size"
        ),
    }
)
"""Options that this trainer does not support, each with the reason or the fix."""
