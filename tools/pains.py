"""What people see when a GLM does not load, train or convert, and the one thing to do: the rows of docs/errors.md.

``seen`` are exact texts, as libraries print them, ``when`` says where they mean this; a row without one is a wrong
result that nothing announces, and ``silent`` says how it shows. ``tests`` run what ``do`` promises.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pain:
    """One trouble: what is seen, why, what to do (English and Chinese), and the tests that hold it."""

    title: str
    seen: tuple[str, ...] = ()
    when: str = ""
    when_zh: str = ""
    silent: str = ""
    silent_zh: str = ""
    why: str
    do: str
    do_zh: str
    tests: tuple[str, ...] = ()


_IMPORT = "`import glmlike` before `from_pretrained`"
_IMPORT_ZH = "在 `from_pretrained` 之前 `import glmlike`"

PAINS: tuple[Pain, ...] = (
    Pain(
        title="Remote code on transformers 5",
        seen=(
            "'ChatGLMConfig' object has no attribute 'max_length'. Did you mean: 'seq_length'?",
            "'ChatGLMForConditionalGeneration' object has no attribute 'all_tied_weights_keys'",
        ),
        why="The repository's own modelling file was written for transformers 4.",
        do=f"{_IMPORT}; a registered class wins over the repository's file, also with `trust_remote_code=True`",
        do_zh=f"{_IMPORT_ZH}；已注册的类优先于仓库里的文件，`trust_remote_code=True` 也一样",
        tests=("tests/test_golden.py::test_no_file_of_the_folder_is_executed",),
    ),
    Pain(
        title="Tokenizers that ask for their vocabulary too early",
        seen=(
            "'ChatGLMTokenizer' object has no attribute 'sp_tokenizer'",
            "'ChatGLMTokenizer' object has no attribute 'tokenizer'",
        ),
        why="transformers 4.34 and later ask for the vocabulary before the repository's tokenizer has read it.",
        do="`import glmlike`, then `AutoTokenizer.from_pretrained(folder)`: it reads the vocabulary file itself",
        do_zh="`import glmlike`，再 `AutoTokenizer.from_pretrained(folder)`：直接读取词表文件",
        tests=("tests/tokenization/test_tokenizer.py::test_auto_tokenizer",),
    ),
    Pain(
        title="padding_side",
        seen=(
            "ChatGLM4Tokenizer._pad() got an unexpected keyword argument 'padding_side'",
            "ChatGLMTokenizer._pad() got an unexpected keyword argument 'padding_side'",
        ),
        why="transformers 4.45 added an argument that the repository's tokenizer does not take.",
        do="as above; either `padding_side` works",
        do_zh="同上；两种 `padding_side` 都可用",
        tests=("tests/tokenization/test_tokenizer.py::test_batches_padding_and_truncation_on_both_sides",),
    ),
    Pain(
        title="generate and its caches",
        seen=(
            "GenerationMixin._extract_past_from_model_output() got an unexpected keyword argument "
            "'standardize_cache_format'",
            "'ChatGLMForConditionalGeneration' object has no attribute '_extract_past_from_model_output'",
            "ValueError: too many values to unpack (expected 2)",
        ),
        why="The repository's code keeps caches as transformers did up to 4.41.",
        do=f"{_IMPORT}; `generate` and every cache class of transformers 5 work",
        do_zh=f"{_IMPORT_ZH}；`generate` 与 transformers 5 的各种缓存都可用",
        tests=("tests/test_generation.py::test_every_cache_gives_the_same_tokens",),
    ),
    Pain(
        title="150001 is not in list",
        seen=("ValueError: 150001 is not in list", "ValueError: 130001 is not in list"),
        why=(
            "The original looks for one hard-coded [gMASK] in every row, and two vocabularies share one name: v1.0 "
            "with 20000 image tokens, v1.1 without. (130000, 130004, 150000 and 150004 are the same.)"
        ),
        do=(
            "`import glmlike`: any row is read, and v1.0 loads as v1.1; use the tokenizer of `AutoTokenizer`, so that "
            "the ids fit"
        ),
        do_zh="`import glmlike`：任何输入都可读，v1.0 按 v1.1 加载；请用 `AutoTokenizer` 的分词器，保证 id 一致",
        tests=(
            "tests/test_tables.py::test_ids_of_the_other_chatglm_6b_vocabulary_are_recognized",
            "tests/test_first_release.py::test_v1_0_loads_as_v1_1",
            "tests/test_prefix.py::test_mixed_rows_in_a_batch_are_the_rows_alone",
        ),
    ),
    Pain(
        title="int4 and int8 kernels",
        seen=(
            "AttributeError: 'NoneType' object has no attribute 'int4WeightExtractionHalf'",
            "AttributeError: 'NoneType' object has no attribute 'int4WeightExtractionFloat'",
            "Failed to load cpm_kernels:",
        ),
        why="The repository's quantization wants a CUDA kernel and a compiler at load time.",
        do="load with glmlike: floats, or `quantization_config=GlmIntConfig(dequantize=False)` to keep the integers",
        do_zh="用 glmlike 加载：默认得到浮点；要保留整数，传 `quantization_config=GlmIntConfig(dequantize=False)`",
        tests=("tests/test_quantization.py::test_the_released_layout_gives_the_originals_logits",),
    ),
    Pain(
        title="Merging LoRA runs out of memory",
        seen=("torch.cuda.OutOfMemoryError", "Killed"),
        when="while LoRA is merged",
        when_zh="（合并 LoRA 时）",
        why="The merge loads base and adapter whole.",
        do="`glmlike merge BASE ADAPTER DST`: tensor by tensor, within `--max-memory`",
        do_zh="`glmlike merge BASE ADAPTER DST`：逐个张量处理，内存不超过 `--max-memory`",
        tests=("tests/test_cli.py::test_merge_and_convert_adapter",),
    ),
    Pain(
        title="P-tuning v2 checkpoints",
        when="of a P-tuned model",
        when_zh="（P-tuning 模型）",
        seen=(
            "size mismatch for embedding.weight:",
            "newly initialized: ['transformer.prefix_encoder.embedding.weight']",
            "'ChatGLMModel' object has no attribute 'prefix_encoder'",
        ),
        why="The trained prefix is in a folder of its own, and the config of the base promises none.",
        do="`glmlike.ptuning.load_prefix(model, folder)`; it is saved with the model from then on",
        do_zh="`glmlike.ptuning.load_prefix(model, folder)`；之后会随模型一起保存",
        tests=("tests/test_ptuning.py::test_a_prefix_from_one_folder_and_its_base_from_another",),
    ),
    Pain(
        title="AutoModelForCausalLM is not in the auto_map",
        seen=(
            "Unrecognized configuration class <class '…ChatGLMConfig'> for this kind of AutoModel: "
            "AutoModelForCausalLM",
        ),
        why="Early repositories name `AutoModel` only.",
        do="`import glmlike`: both `AutoModel` and `AutoModelForCausalLM` give the language model",
        do_zh="`import glmlike`：`AutoModel` 与 `AutoModelForCausalLM` 都返回语言模型",
        tests=("tests/test_registration.py::test_every_class_an_original_auto_map_names_is_ours",),
    ),
    Pain(
        title="Chat templates that drift",
        silent="replies get worse; the ids of `<|user|>` typed as text differ from the control token's",
        silent_zh="回复变差；以文本写出的 `<|user|>` 与控制符的 id 不同",
        why="Each engine rewrites the prompt; text and control tokens are not the same thing.",
        do="`tokenizer.apply_chat_template(messages, add_generation_prompt=True)`, tokenized, not a string of your own",
        do_zh=(
            "用 `tokenizer.apply_chat_template(messages, add_generation_prompt=True)`（直接得到 id），不要自己拼字符串"
        ),
        tests=(
            "tests/tokenization/test_safe_chat.py::test_hostile_chats_have_the_control_tokens_of_the_template_alone",
        ),
    ),
    Pain(
        title="GGUF",
        seen=(
            "ERROR:hf-to-gguf:Model GlmForCausalLM is not supported",
            "ValueError: Can not map tensor",
            "has no attribute 'ChatGLM4Tokenizer'",
        ),
        why="llama.cpp's script knows neither the class nor these names.",
        do="`glmlike convert SRC out.gguf --to gguf`",
        do_zh="`glmlike convert SRC out.gguf --to gguf`",
        tests=("tests/checkpoint/test_gguf.py::test_names_and_shapes_are_llama_cpps",),
    ),
    Pain(
        title="Fine-tunes that cannot be reloaded",
        seen=(
            "AttributeError: can't set attribute 'eos_token'",
            "property 'eos_token' of 'ChatGLMTokenizer' object has no setter",
        ),
        why="The repository's tokenizer has read-only properties where the saved file sets values.",
        do="`import glmlike`, load the saved folder; `save_pretrained` then writes an ordinary fast tokenizer",
        do_zh="`import glmlike` 后加载保存的目录；再 `save_pretrained` 即得到普通的 fast 分词器",
        tests=(
            "tests/tokenization/test_tokenizer.py::test_eos_token_can_be_set_and_tokens_added",
            "tests/tokenization/test_tokenizer.py::test_saved_and_read_again",
        ),
    ),
    Pain(
        title="Several GPUs",
        seen=("Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cuda:1!",),
        why="The repository's code does not say which layers must stay whole.",
        do=f'{_IMPORT}, with `device_map="auto"`',
        do_zh=f'{_IMPORT_ZH}，并用 `device_map="auto"`',
        tests=("tests/test_ecosystem.py::test_device_map_and_offload_to_disk",),
    ),
    Pain(
        title="padding_side must be left",
        seen=('assert self.padding_side == "left"',),
        why="The original tokenizer refuses what its own saved config says.",
        do="use `AutoTokenizer` with glmlike; both sides are padded correctly, left is the default",
        do_zh="配合 glmlike 使用 `AutoTokenizer`；左右填充都正确，默认左侧",
        tests=("tests/tokenization/test_tokenizer.py::test_batches_padding_and_truncation_on_both_sides",),
    ),
    Pain(
        title="A serving engine does not take the checkpoint",
        seen=(
            "Model architectures ['GlmForCausalLM'] are not supported for now",
            "'ChatGLMConfig' object has no attribute 'num_hidden_layers'",
        ),
        why="The engine knows transformers' layouts, not the one of the files.",
        do="`glmlike convert SRC DST --to glm` (or `glm4`, `llama`, `qwen2`): these need no plugin",
        do_zh="`glmlike convert SRC DST --to glm`（或 `glm4`、`llama`、`qwen2`）：结果不需要插件",
        tests=("tests/checkpoint/test_convert.py::test_glm4_becomes_transformers_own_class",),
    ),
    Pain(
        title="GLM-10B and GLM-130B have no road to transformers",
        seen=("convert cost too much memory(260GB)",),
        when="of GLM-130B; of GLM-10B, weights that are not used",
        when_zh="（GLM-130B）；GLM-10B 则提示权重未被使用",
        silent="weights that are not used, and bad output",
        silent_zh="权重未被使用，输出错误",
        why="The files are of frameworks of their own, cut into ranks.",
        do="`from_pretrained` reads them; `glmlike convert SRC DST --to glmlike` rewrites them in bounded memory",
        do_zh="`from_pretrained` 可直接读取；`glmlike convert SRC DST --to glmlike` 在限定内存内改写",
        tests=(
            "tests/test_sat.py::test_native_tensors_of_any_ranks_and_bits",
            "tests/test_prefix.py::test_glm_10b_gives_the_originals_outputs",
        ),
    ),
    Pain(
        title="The Trainer's evaluation crashes",
        when="in the Trainer's evaluation",
        when_zh="（Trainer 评估时）",
        seen=("past_length = past_key_values[0][0].shape[0]", "KeyError: 'loss'"),
        why="The repository's outputs are tuples of its own making.",
        do=f"{_IMPORT}; `trainer.evaluate()` works, with no subclass",
        do_zh=f"{_IMPORT_ZH}；`trainer.evaluate()` 直接可用，无须子类",
        tests=("tests/test_ecosystem.py::test_trainer_learns_evaluates_and_saves",),
    ),
    Pain(
        title="float16 on a CPU",
        seen=("\"addmm_impl_cpu_\" not implemented for 'Half'",),
        why="Older torch has no float16 products on CPUs; newer ones are slow there.",
        do='torch 2.6 or newer, and `dtype="bfloat16"` or `"float32"`',
        do_zh='使用 torch 2.6 或更新版本，并设 `dtype="bfloat16"` 或 `"float32"`',
        tests=("tests/test_loading.py::test_float16_on_a_cpu_works_and_says_once_how_to_do_better",),
    ),
    Pain(
        title="PEFT finds no target modules",
        seen=(
            "ValueError: Please specify `target_modules` or `target_parameters`in `peft_config`",
            "ValueError: Target modules {'q_proj', 'v_proj'} not found in the base model.",
        ),
        why="The original fuses q, k and v; PEFT knows no defaults for `glm` and `glm4`.",
        do="load with glmlike: `LoraConfig()` needs none; `GlmLikeForCausalLM` for `glm` and `glm4` folders",
        do_zh="用 glmlike 加载：`LoraConfig()` 无须指定；`glm`、`glm4` 目录请用 `GlmLikeForCausalLM`",
        tests=("tests/test_lora.py::test_defaults_train_save_and_load",),
    ),
    Pain(
        title="Which checkpoint, which class: -hf or not",
        silent="other results with `GlmForCausalLM` than with `AutoModelForCausalLM`; GLM-10B read as GLM-4",
        silent_zh="`GlmForCausalLM` 与 `AutoModelForCausalLM` 结果不同；GLM-10B 被当作 GLM-4",
        why="`glm` and `chatglm` are two layouts of one decoder, and `glm` is GLM-10B's `model_type` as well.",
        do="`glmlike inspect FOLDER` says what it is; `glmlike verify A B` says whether two folders are one model",
        do_zh="`glmlike inspect FOLDER` 说明是什么；`glmlike verify A B` 判断两个目录是否同一模型",
        tests=("tests/test_contracts.py::test_detection_goes_by_fields_not_by_the_folders_name",),
    ),
    Pain(
        title="Gradient checkpointing",
        seen=(
            "'ChatGLMForConditionalGeneration' object has no attribute 'enable_input_require_grads'",
            "ChatGLMForConditionalGeneration does not support activation checkpointing.",
            "does not support gradient checkpointing",
        ),
        why="The repository's class lacks what the Trainer and PEFT call.",
        do=f"{_IMPORT}, then `gradient_checkpointing=True`",
        do_zh=f"{_IMPORT_ZH}，再设 `gradient_checkpointing=True`",
        tests=("tests/test_generation.py::test_activation_checkpointing_changes_no_gradient",),
    ),
    Pain(
        title="Repetition, or no stop",
        silent="the model goes on with both sides of the dialogue",
        silent_zh="模型自问自答，停不下来",
        why="The folder names one stop id of three, or the prompt is not the template's.",
        do="load with glmlike (all stop ids of the generation) and prompt with `apply_chat_template`",
        do_zh="用 glmlike 加载（带全部停止 id），并用 `apply_chat_template` 构造提示",
        tests=("tests/test_generation_defaults.py::test_a_folder_without_the_file_gets_all_stops",),
    ),
    Pain(
        title="A slow tokenizer",
        seen=("Using a slow tokenizer. This might cause a significant slowdown.",),
        why="The repository has a Python tokenizer only.",
        do="`import glmlike`: `AutoTokenizer` gives a fast one for every generation; save it once",
        do_zh="`import glmlike`：`AutoTokenizer` 为每一代给出 fast 分词器；保存一次即可",
        tests=("tests/tokenization/test_tokenizer.py::test_transformers_without_glmlike_gives_the_same_ids",),
    ),
    Pain(
        title="No FlashAttention, no SDPA",
        seen=("ChatGLMForConditionalGeneration does not support Flash Attention 2.0 yet.",),
        why="The repository's class has one attention of its own.",
        do=(
            "load with glmlike: `sdpa` is the default, `flash_attention_2` is for decoders that only look back; those "
            "that fill blanks need `sdpa` or `eager`"
        ),
        do_zh="用 glmlike 加载：默认 `sdpa`，单向解码器可用 `flash_attention_2`；填空解码器须用 `sdpa` 或 `eager`",
        tests=(
            "tests/test_generation.py::test_flash_attention_reaches_the_interface",
            "tests/test_prefix.py::test_flash_attention_is_refused_with_the_reason",
        ),
    ),
    Pain(
        title="ZeRO-3 and other sharded loading",
        seen=("NotImplementedError: Cannot copy out of meta tensor; no data!",),
        why="The repository's code makes tensors where such loaders expect none; fused files would be cut wrongly.",
        do="`glmlike convert SRC DST --to glmlike`, then load DST (tested: FSDP2, tensor parallelism, transformers' "
        "ZeRO-3 code without DeepSpeed)",
        do_zh="先 `glmlike convert SRC DST --to glmlike`，再加载 DST（已测 FSDP2、张量并行，以及 transformers 的 "
        "ZeRO-3 代码，未装 DeepSpeed）",
        tests=(
            "tests/test_loading.py::test_sharded_loading_of_fused_matrices_is_refused_with_the_command",
            "tests/test_ecosystem.py::test_two_processes_compute_what_one_does",
            "tests/test_pains.py::test_loaded_under_zero_3",
        ),
    ),
)
"""The rows, by how often they are met."""


def table(language: str = "en") -> str:
    """The README's table: the first of what is seen, and what to do."""
    head = {"en": ("you saw", "do"), "zh": ("看到的现象", "做法")}[language]
    rows = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    for pain in PAINS:
        silent, when = (pain.silent, pain.when) if language == "en" else (pain.silent_zh, pain.when_zh)
        seen = " ".join(filter(None, (_code(pain.seen[0]), when))) if pain.seen else _cell(silent)
        rows.append(f"| {seen} | {_cell(pain.do if language == 'en' else pain.do_zh)} |")
    return "\n".join(rows)


def sections() -> str:
    """The page's body: a section a row, every exact text in a block of its own."""
    parts = []
    for pain in PAINS:
        seen = "\n\n".join(f"```error\n{text}\n```" for text in pain.seen)
        silent = f"No error: {pain.silent}." if pain.silent else ""
        tests = ", ".join(f"`{test.removeprefix('tests/')}`" for test in pain.tests)
        body = "\n\n".join(filter(None, (seen, silent, f"{pain.why} **Do:** {pain.do}.", f"Tested by {tests}.")))
        parts.append(f"## {pain.title}\n\n{body}")
    return "\n\n".join(parts)


def _code(text: str) -> str:
    """Inline code, also of a text that has code marks of its own."""
    marks = "``" if "`" in text else "`"
    return f"{marks}{_cell(text)}{marks}"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
