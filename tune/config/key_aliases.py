"""Keys of other tools, by the key of a sweep file that means the same or by what to do instead.

The tools are Axolotl, LLaMA-Factory, and TRL with Transformers and PEFT. A name with a section
before it applies in that section only.
"""

from __future__ import annotations

from collections import defaultdict

ANY_RECIPE = "RECIPE"
"""Stands for the name of any recipe."""

# By our key, the names that mean the same.
_ALIASES = {
    "name": "run_name wandb_name",
    "model.name": "base_model model_name_or_path model_name model_id model.path",
    "model.dtype": "torch_dtype bf16",
    "model.attention": "attn_implementation flash_attention flash_attn",
    "model.revision": "model_revision revision_of_model",
    "model.chat_template": "template chat_template_jinja chat_template_path",
    "model.chat_template_args": "chat_template_kwargs enable_thinking",
    "data": "dataset datasets",
    "data.path": "data.dataset dataset_name dataset_path train_file",
    "data.subset": "data.name dataset_config",
    "data.split": "dataset_train_split",
    "data.text": "dataset_text_field",
    "data.messages": "conversations field_messages",
    "data.prompt": "instruction field_instruction data.input field_input data.query",
    "data.completion": "data.output field_output data.response",
    "data.system": "system_prompt default_system",
    "data.limit": "max_samples",
    "data.max_length": "sequence_len cutoff_len max_seq_length max_seq_len model_max_length",
    "data.validation_fraction": "val_set_size val_size test_size",
    "data.validation_path": "test_datasets eval_dataset eval_path validation_file",
    "data.validation_split": "dataset_test_split",
    "train.epochs": "num_epochs num_train_epochs",
    "train.steps": "max_steps",
    "train.micro_batch_size": "per_device_train_batch_size",
    "train.schedule": "lr_scheduler lr_scheduler_type",
    "train.warmup": "warmup_ratio",
    "train.max_grad_norm": "gradient_clipping grad_clip",
    "train.report_every": "eval_steps evals_per_epoch eval_strategy",
    "train.log_every": "logging_steps",
    "eval.batch_size": "per_device_eval_batch_size eval_batch_size",
    f"search.{ANY_RECIPE}.learning_rate": "lr",
    f"search.{ANY_RECIPE}.rank": "lora_r lora_rank r",
    f"search.{ANY_RECIPE}.alpha": "lora_alpha",
    f"search.{ANY_RECIPE}.alpha_ratio": "lora_alpha",
    f"search.{ANY_RECIPE}.dropout": "lora_dropout",
    f"search.{ANY_RECIPE}.target_modules": "lora_target_modules lora_target_linear lora_target",
    f"search.{ANY_RECIPE}.rslora": "peft_use_rslora use_rslora",
    f"search.{ANY_RECIPE}.dora": "peft_use_dora use_dora",
    "wandb.project": "wandb_project",
    "wandb.entity": "wandb_entity",
    "wandb.mode": "wandb_mode report_to use_wandb",
}

_NOT_HERE = "not available here"
# By what to do instead, the names that no key here replaces.
_WITHOUT_KEY = {
    "set train.batch_size, the samples per step over all workers; gradients are accumulated over "
    "passes of train.micro_batch_size": "gradient_accumulation_steps",
    "set train.warmup, a share of the steps": "warmup_steps",
    "set model.load_in_4bit": "quantization_bit",
    "give the folder as the option --output-dir": "output_dir overwrite_output_dir",
    "not needed: the same command again resumes": (
        "resume_from_checkpoint auto_resume_from_checkpoints"
    ),
    "not needed: checkpoints are saved when needed; budget.checkpoint_gib limits their size": (
        "save_steps save_strategy saves_per_epoch save_total_limit"
    ),
    "not needed: only completions and answers are learned; data.answers chooses which of a chat": (
        "train_on_inputs train_on_prompt completion_only_loss assistant_only_loss"
    ),
    "not needed: data.prompt and data.completion, data.messages or data.text say what is learned": (
        "data.type data.formatting data.columns"
    ),
    "not needed: the recipes under search name their methods": (
        "adapter finetuning_type use_peft stage do_train do_eval"
    ),
    f"{_NOT_HERE}; model.load_in_4bit is": "load_in_8bit",
    f"{_NOT_HERE}: model.dtype is bfloat16 or float32": "fp16",
    f"{_NOT_HERE}: each sample is a sequence of its own": (
        "packing sample_packing eval_sample_packing pad_to_sequence_len"
    ),
    f"{_NOT_HERE}: AdamW trains, with torch's betas and epsilon": (
        "optimizer optim adam_beta1 adam_beta2 adam_epsilon"
    ),
    f"{_NOT_HERE}: deepspeed shards what trains the base itself": "fsdp fsdp_config",
    _NOT_HERE: (
        "modules_to_save lora_modules_to_save adapter_name_or_path rl rope_scaling data.streaming "
    ),
}


def _by_name(names_of: dict[str, str]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for meaning, names in names_of.items():
        for name in names.split():
            found[name].append(meaning)
    return dict(found)


# By a name of theirs, the keys here that mean the same.
SAME_MEANING = _by_name(_ALIASES)
# By a name of theirs that no key here replaces, what to do instead.
REMEDIES = {name: remedy for name, (remedy,) in _by_name(_WITHOUT_KEY).items()}
