"""What other tools call what a sweep file has, for those who bring their keys along.

They are Axolotl, LLaMA-Factory, and TRL with Transformers and PEFT. A name with a section before it
is meant inside that section alone.
"""

from __future__ import annotations

from collections import defaultdict

# By our key, the names that mean the same.
_NAMES_OF = {
    "name": "run_name wandb_name",
    "seed": "data_seed",
    "model.name": "base_model model_name_or_path model_name model_id model.path",
    "model.dtype": "torch_dtype bf16",
    "model.attention": "attn_implementation flash_attention flash_attn sdp_attention "
    "xformers_attention",
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
    "data.max_length": "sequence_len cutoff_len max_seq_length max_seq_len model_max_length "
    "truncation",
    "data.validation_fraction": "val_set_size val_size test_size",
    "data.validation_path": "test_datasets eval_dataset eval_path test_path validation_file",
    "data.validation_split": "dataset_test_split",
    "data.replay.share": "interleave_probs",
    "train.epochs": "num_epochs num_train_epochs",
    "train.steps": "max_steps",
    "train.micro_batch_size": "per_device_train_batch_size",
    "train.schedule": "lr_scheduler lr_scheduler_type",
    "train.warmup": "warmup_ratio",
    "train.max_grad_norm": "gradient_clipping grad_clip",
    "train.gradient_checkpointing": "disable_gradient_checkpointing",
    "train.report_every": "eval_steps evals_per_epoch eval_strategy",
    "train.log_every": "logging_steps",
    "eval": "evaluation",
    "eval.batch_size": "per_device_eval_batch_size eval_batch_size",
    "search.lora.learning_rate": "lr",
    "search.full.learning_rate": "lr",
    "search.lora.rank": "lora_r lora_rank r",
    "search.lora.alpha": "lora_alpha",
    "search.lora.alpha_ratio": "lora_alpha",
    "search.lora.dropout": "lora_dropout",
    "search.lora.target_modules": "lora_target_modules lora_target_linear lora_target",
    "search.lora.rslora": "peft_use_rslora use_rslora",
    "search.lora.dora": "peft_use_dora use_dora",
    "wandb.project": "wandb_project",
    "wandb.entity": "wandb_entity",
    "wandb.mode": "wandb_mode report_to use_wandb",
}

_NOT_HERE = "not available here"
# By what to do about it, the names of what no key here means alone.
_NAMES_WITHOUT_KEY = {
    "set train.batch_size, the samples of a step over all workers; it is accumulated from passes "
    "of train.micro_batch_size": "gradient_accumulation_steps",
    "set train.warmup, a share of the steps": "warmup_steps",
    "set model.eos_token; the others are those of the tokenizer": "special_tokens",
    "set model.load_in_4bit": "quantization_bit",
    "name it in data.path, and the field of its texts in data.text": "pretraining_dataset",
    "give the folder as the option --output-dir": "output_dir",
    "none needed: give another name, or another --output-dir": "overwrite_output_dir",
    "none needed: the same command again goes on where it stopped": (
        "resume_from_checkpoint auto_resume_from_checkpoints"
    ),
    "none needed: checkpoints are saved as they are needed; budget.checkpoint_gib bounds them": (
        "save_steps save_strategy saves_per_epoch save_total_limit"
    ),
    "none needed: the weights of the best evaluation are kept beside the last; early_stopping "
    "ends trials that others dominate": "load_best_model_at_end early_stopping_patience patience",
    "none needed: of prompt and completion, or messages, answers alone are learned; data.answers "
    "says which of a chat's": (
        "train_on_inputs train_on_prompt mask_prompt mask_history roles_to_train "
        "completion_only_loss assistant_only_loss"
    ),
    "none needed: data.prompt and data.completion, data.messages or data.text say what is learned "
    "of a row": "data.type data.formatting data.columns",
    "none needed: samples are shuffled by the seed": "data.shuffle",
    "none needed: every trial is supervised fine-tuning, evaluated as train.report_every says": (
        "stage do_train do_eval"
    ),
    "none needed: the base is evaluated before any trial": "eval_on_start",
    "none needed: training caches no keys and values": "use_cache",
    "none needed: search.lora trains LoRA, search.full all parameters": (
        "adapter finetuning_type use_peft"
    ),
    f"{_NOT_HERE}; model.load_in_4bit is": "load_in_8bit",
    f"{_NOT_HERE}: model.dtype is bfloat16 or float32": "fp16",
    f"{_NOT_HERE}: each sample is a sequence of its own": (
        "packing sample_packing eval_packing eval_sample_packing pad_to_sequence_len"
    ),
    f"{_NOT_HERE}: AdamW trains, with torch's betas and epsilon": (
        "optimizer optim adam_beta1 adam_beta2 adam_epsilon"
    ),
    f"{_NOT_HERE}: deepspeed shards full fine-tuning": "fsdp fsdp_config",
    f"{_NOT_HERE}: every trial is supervised fine-tuning": "rl",
    f"{_NOT_HERE}: each trial begins with an adapter of its own": (
        "adapter_name_or_path adapter_path lora_model_dir"
    ),
    f"{_NOT_HERE}: LoRA trains its adapter alone, search.full all parameters": (
        "modules_to_save lora_modules_to_save additional_target bias lora_bias"
    ),
    f"{_NOT_HERE}: search.lora.target_modules names modules of all layers": (
        "layers_to_transform peft_layers_to_transform exclude_modules"
    ),
    f"{_NOT_HERE}: an adapter has one search.lora.rank": "rank_pattern",
    f"{_NOT_HERE}: an adapter has one search.lora.alpha": "alpha_pattern",
    _NOT_HERE: (
        "add_tokens model.tokens resize_token_embeddings resize_vocab "
        "resize_token_embeddings_to_32x rope_scaling tokenizer pad_token data.streaming "
        "group_by_length label_smoothing_factor min_lr_ratio cosine_min_lr_ratio "
        "neftune_noise_alpha loraplus_lr_ratio loraplus_lr_embedding init_lora_weights pissa_init "
        "push_to_hub hub_model_id use_liger_kernel enable_liger_kernel"
    ),
}


def _by_name(names_of: dict[str, str]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for meaning, names in names_of.items():
        for name in names.split():
            found[name].append(meaning)
    return dict(found)


# By a name of theirs, the keys here that mean the same.
SAME_MEANING = _by_name(_NAMES_OF)
# By a name of theirs that no key here means alone, what to do about it.
REMEDIES = {name: remedy for name, (remedy,) in _by_name(_NAMES_WITHOUT_KEY).items()}
