"""What other tools call what a sweep file has, for those who bring their keys along."""

from __future__ import annotations

# Keys of Axolotl (A), of LLaMA-Factory (F), and of TRL, Transformers and PEFT (T), each with the
# keys here that mean the same. One with a section before it is meant inside that section alone.
SAME_MEANING: dict[str, tuple[str, ...]] = {
    # the model
    "base_model": ("model.name",),  # A
    "model_name_or_path": ("model.name",),  # F, T
    "model_name": ("model.name",),
    "model_id": ("model.name",),
    "model.path": ("model.name",),
    "torch_dtype": ("model.dtype",),  # A, T
    "bf16": ("model.dtype",),  # A, F, T
    "attn_implementation": ("model.attention",),  # A, T
    "flash_attention": ("model.attention",),  # A
    "flash_attn": ("model.attention",),  # F
    "sdp_attention": ("model.attention",),  # A
    "model_revision": ("model.revision",),  # F, T
    "revision_of_model": ("model.revision",),  # A
    "template": ("model.chat_template",),  # F
    "chat_template_jinja": ("model.chat_template",),  # A
    "chat_template_path": ("model.chat_template",),  # T
    # the data
    "dataset": ("data",),  # F
    "datasets": ("data",),  # A
    "data.dataset": ("data.path",),
    "dataset_name": ("data.path",),  # T
    "dataset_path": ("data.path",),
    "train_file": ("data.path",),
    "data.name": ("data.subset",),  # A, T
    "dataset_config": ("data.subset",),  # T
    "dataset_train_split": ("data.split",),  # T
    "dataset_test_split": ("data.validation_split",),  # T
    "dataset_text_field": ("data.text",),  # T
    "conversations": ("data.messages",),  # A, F
    "field_messages": ("data.messages",),  # A
    "instruction": ("data.prompt",),  # A, F
    "field_instruction": ("data.prompt",),  # A
    "data.input": ("data.prompt",),  # A, F
    "field_input": ("data.prompt",),  # A
    "data.query": ("data.prompt",),  # F
    "data.output": ("data.completion",),  # A, F
    "field_output": ("data.completion",),  # A
    "data.response": ("data.completion",),  # F
    "system_prompt": ("data.system",),  # A
    "default_system": ("data.system",),  # F
    "max_samples": ("data.limit",),  # F
    "val_set_size": ("data.validation_fraction",),  # A
    "val_size": ("data.validation_fraction",),  # F
    "test_size": ("data.validation_fraction",),
    "test_datasets": ("data.validation_path",),  # A
    "eval_dataset": ("data.validation_path",),  # F, T
    "eval_path": ("data.validation_path",),
    "test_path": ("data.validation_path",),
    "validation_file": ("data.validation_path",),
    "interleave_probs": ("data.replay.share",),  # F
    "sequence_len": ("data.max_length",),  # A
    "cutoff_len": ("data.max_length",),  # F
    "max_seq_length": ("data.max_length",),  # T
    "max_seq_len": ("data.max_length",),
    "model_max_length": ("data.max_length",),
    "truncation": ("data.max_length",),  # T
    # the training
    "num_epochs": ("train.epochs",),  # A
    "num_train_epochs": ("train.epochs",),  # F, T
    "max_steps": ("train.steps",),  # A, F, T
    "per_device_train_batch_size": ("train.micro_batch_size",),  # F, T
    "per_device_eval_batch_size": ("eval.batch_size",),  # F, T
    "eval_batch_size": ("eval.batch_size",),  # A
    "lr": ("search.lora.learning_rate", "search.full.learning_rate"),
    "lr_scheduler": ("train.schedule",),  # A
    "lr_scheduler_type": ("train.schedule",),  # F, T
    "warmup_ratio": ("train.warmup",),  # A, F, T
    "gradient_clipping": ("train.max_grad_norm",),
    "grad_clip": ("train.max_grad_norm",),
    "disable_gradient_checkpointing": ("train.gradient_checkpointing",),  # F
    "eval_steps": ("train.report_every",),  # A, F, T
    "evals_per_epoch": ("train.report_every",),  # A
    "eval_strategy": ("train.report_every",),  # A, F, T
    "logging_steps": ("train.log_every",),  # A, F, T
    "data_seed": ("seed",),  # T
    # LoRA
    "lora_r": ("search.lora.rank",),  # A, T
    "lora_rank": ("search.lora.rank",),  # F
    "r": ("search.lora.rank",),  # T
    "lora_alpha": ("search.lora.alpha", "search.lora.alpha_ratio"),  # A, F, T
    "lora_dropout": ("search.lora.dropout",),  # A, F, T
    "lora_target_modules": ("search.lora.target_modules",),  # A, T
    "lora_target_linear": ("search.lora.target_modules",),  # A
    "lora_target": ("search.lora.target_modules",),  # F
    "peft_use_rslora": ("search.lora.rslora",),  # A
    "use_rslora": ("search.lora.rslora",),  # F, T
    "peft_use_dora": ("search.lora.dora",),  # A
    "use_dora": ("search.lora.dora",),  # F, T
    # Weights & Biases
    "wandb_project": ("wandb.project",),  # A
    "wandb_entity": ("wandb.entity",),  # A
    "wandb_mode": ("wandb.mode",),  # A
    "report_to": ("wandb.mode",),  # F, T
    "use_wandb": ("wandb.mode",),  # A
    "run_name": ("name",),  # F, T
    "wandb_name": ("name",),  # A
}

_NOT_HERE = "not available here"
_ANSWERS_ALONE = (
    "none needed: of prompt and completion, or messages, answers alone are learned; data.answers "
    "says which of a chat's"
)
_OF_ROWS = (
    "none needed: data.prompt and data.completion, data.messages or data.text say what is learned "
    "of a row"
)
_METHOD = "none needed: search.lora trains LoRA, search.full all parameters"
_CHECKPOINTS = (
    "none needed: checkpoints are saved as they are needed; budget.checkpoint_gib bounds them"
)
_BEST = (
    "none needed: the weights of the best evaluation are kept beside the last; early_stopping ends "
    "trials that others dominate"
)
_GO_ON = "none needed: the same command again goes on where it stopped"
_ONE_SAMPLE = f"{_NOT_HERE}: each sample is a sequence of its own"
_ADAMW = f"{_NOT_HERE}: AdamW trains, with torch's betas and epsilon"
_SHARDING = f"{_NOT_HERE}: deepspeed shards full fine-tuning"
_NEW_ADAPTER = f"{_NOT_HERE}: each trial begins with an adapter of its own"
_ALL_LAYERS = f"{_NOT_HERE}: search.lora.target_modules names modules of all layers"
_ADAPTER_ALONE = f"{_NOT_HERE}: LoRA trains its adapter alone, search.full all parameters"

# Keys of theirs that no key here means alone, each with what to do about it.
IN_WORDS: dict[str, str] = {
    "gradient_accumulation_steps": "set train.batch_size, the samples of a step over all workers; "
    "it is accumulated from passes of train.micro_batch_size",  # A, F, T
    "warmup_steps": "set train.warmup, a share of the steps",  # A, F, T
    "output_dir": "give the folder as the option --output-dir",  # A, F, T
    "overwrite_output_dir": "none needed: give another name, or another --output-dir",  # F, T
    "resume_from_checkpoint": _GO_ON,  # A, F, T
    "auto_resume_from_checkpoints": _GO_ON,  # A
    "save_steps": _CHECKPOINTS,  # A, F, T
    "save_strategy": _CHECKPOINTS,  # A, F, T
    "saves_per_epoch": _CHECKPOINTS,  # A
    "save_total_limit": _CHECKPOINTS,  # A, F, T
    "load_best_model_at_end": _BEST,  # A, T
    "early_stopping_patience": _BEST,  # A
    "patience": _BEST,
    "train_on_inputs": _ANSWERS_ALONE,  # A
    "train_on_prompt": _ANSWERS_ALONE,  # F
    "mask_prompt": _ANSWERS_ALONE,
    "mask_history": _ANSWERS_ALONE,  # F
    "roles_to_train": _ANSWERS_ALONE,  # A
    "completion_only_loss": _ANSWERS_ALONE,  # T
    "assistant_only_loss": _ANSWERS_ALONE,  # T
    "data.type": _OF_ROWS,  # A
    "data.formatting": _OF_ROWS,  # F
    "data.columns": _OF_ROWS,  # F
    "pretraining_dataset": "name it in data.path, and the field of its texts in data.text",  # A
    "data.shuffle": "none needed: samples are shuffled by the seed",
    "adapter": _METHOD,  # A
    "finetuning_type": _METHOD,  # F
    "use_peft": _METHOD,  # T
    "special_tokens": "set model.eos_token; the others are those of the tokenizer",  # A
    "load_in_8bit": f"{_NOT_HERE}; model.load_in_4bit is",  # A, T
    "quantization_bit": "set model.load_in_4bit",  # F
    "fp16": f"{_NOT_HERE}: model.dtype is bfloat16 or float32",  # A, F, T
    "packing": _ONE_SAMPLE,  # F, T
    "sample_packing": _ONE_SAMPLE,  # A
    "eval_sample_packing": _ONE_SAMPLE,  # A
    "pad_to_sequence_len": _ONE_SAMPLE,  # A
    "optimizer": _ADAMW,  # A
    "optim": _ADAMW,  # F, T
    "adam_beta1": _ADAMW,  # A, F, T
    "adam_beta2": _ADAMW,  # A, F, T
    "adam_epsilon": _ADAMW,  # A, F, T
    "fsdp": _SHARDING,  # A, F, T
    "fsdp_config": _SHARDING,  # A, F, T
    "adapter_name_or_path": _NEW_ADAPTER,  # F
    "adapter_path": _NEW_ADAPTER,
    "lora_model_dir": _NEW_ADAPTER,  # A
    "modules_to_save": _ADAPTER_ALONE,  # T
    "lora_modules_to_save": _ADAPTER_ALONE,  # A, T
    "additional_target": _ADAPTER_ALONE,  # F
    "bias": _ADAPTER_ALONE,  # T
    "layers_to_transform": _ALL_LAYERS,  # T
    "peft_layers_to_transform": _ALL_LAYERS,  # A
    "exclude_modules": _ALL_LAYERS,  # T
    "rank_pattern": f"{_NOT_HERE}: an adapter has one search.lora.rank",  # T
    "alpha_pattern": f"{_NOT_HERE}: an adapter has one search.lora.alpha",  # T
    **dict.fromkeys(
        (
            "add_tokens",
            "model.tokens",  # A
            "resize_token_embeddings",
            "resize_vocab",  # F
            "resize_token_embeddings_to_32x",  # A
            "rope_scaling",  # F
            "tokenizer",
            "pad_token",  # T
            "data.streaming",  # A, F
            "group_by_length",  # A, F, T
            "label_smoothing_factor",  # A, F, T
            "min_lr_ratio",
            "cosine_min_lr_ratio",  # A
            "neftune_noise_alpha",  # A, F, T
            "loraplus_lr_ratio",  # A, F
            "loraplus_lr_embedding",  # A, F
            "init_lora_weights",  # T
            "pissa_init",  # F
            "push_to_hub",  # F, T
            "hub_model_id",  # A, F, T
            "use_liger_kernel",  # T
            "enable_liger_kernel",  # F
        ),
        _NOT_HERE,
    ),
}
