"""Layouts of conversations: the published ones, as Jinja templates (see template.py).

`begin` is the token that precedes every document (bos, or eos where a tokenizer has no bos).
Where a template checks whether to write a generation prompt, that prompt is exactly the text
before the assistant's message otherwise.
"""

from typing import NamedTuple


class Layout(NamedTuple):
    """source: Jinja. needs: special tokens that the tokenizer must have. between: the text
    between an instruction and the text that it is about, where a record has both."""

    source: str
    needs: tuple[str, ...] = ()
    between: str = "\n\n"


# The prompt, the response, eos; no word of its own.
_PLAIN = """{{ begin }}
{%- for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}
{%- endfor %}"""

# Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca, "Data Release".
_ALPACA = """{{ begin }}
{%- for m in messages %}
{%- if m.role == 'system' and loop.first %}{{ m.content }}
{%- elif m.role == 'system' %}{{ raise_exception('the system message must be the first') }}
{%- elif m.role == 'user' %}
{%- if loop.first and '\n\n### Input:\n' in m.content %}{{ 'Below is an instruction that describes \
a task, paired with an input that provides further context. Write a response that appropriately \
completes the request.' }}
{%- elif loop.first %}{{ 'Below is an instruction that describes a task. Write a response that \
appropriately completes the request.' }}
{%- endif %}{{ '\n\n### Instruction:\n' + m.content + '\n\n### Response:' }}
{%- else %}{{ m.content + eos_token }}
{%- endif %}
{%- endfor %}"""

# github.com/lm-sys/FastChat, conversation "vicuna_v1.1".
_VICUNA = """{{ begin }}
{%- for m in messages %}
{%- if m.role == 'system' and loop.first %}{{ m.content + ' ' }}
{%- elif m.role == 'system' %}{{ raise_exception('the system message must be the first') }}
{%- elif m.role == 'user' %}{{ 'USER: ' + m.content + ' ASSISTANT:' }}
{%- else %}{{ ' ' + m.content + eos_token }}
{%- endif %}
{%- endfor %}"""

# Tunstall et al. 2023, HuggingFaceH4/zephyr-7b-beta. The roles are text, each turn ends with eos.
_ZEPHYR = """{{ begin }}
{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""

# github.com/openai/openai-python, release 0.27.0, chatml.md; Qwen writes the same.
_CHATML = """{{ begin }}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Touvron et al. 2023b, github.com/meta-llama/llama, `chat_completion`.
_LLAMA2 = """{%- set sys = '' %}{%- set turns = messages %}
{%- if messages[0].role == 'system' %}
{%- set sys = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}{%- set turns = messages[1:] %}
{%- endif %}
{%- for m in turns %}
{%- if m.role == 'user' %}
{{- begin + '[INST] ' + ((sys if loop.first else '') + m.content) | trim + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}
{%- else %}{{ raise_exception('the system message must be the first') }}
{%- endif %}
{%- endfor %}"""

# github.com/mistralai/mistral-common, version 1.
_MISTRAL = """{{ begin }}{%- set sys = '' %}{%- set turns = messages %}
{%- if messages[0].role == 'system' %}
{%- set sys = messages[0].content + '\n\n' %}{%- set turns = messages[1:] %}
{%- endif %}
{%- for m in turns %}
{%- if m.role == 'user' %}{{ '[INST] ' + (sys if loop.first else '') + m.content + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}
{%- else %}{{ raise_exception('the system message must be the first') }}
{%- endif %}
{%- endfor %}"""

# Grattafiori et al. 2024, "Llama 3 Model Cards and Prompt formats".
_LLAMA3 = """{{ begin }}
{%- for m in messages %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

# Gemma Team 2024, section 5 (table 4). A system message comes before the first user's.
_GEMMA = """{{ begin }}{%- set sys = '' %}{%- set turns = messages %}
{%- if messages[0].role == 'system' %}
{%- set sys = messages[0].content + '\n\n' %}{%- set turns = messages[1:] %}
{%- endif %}
{%- for m in turns %}
{%- if m.role == 'system' %}{{ raise_exception('the system message must be the first') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' }}
{{- (sys if loop.first else '') + m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

LAYOUTS: dict[str, Layout] = {
    "plain": Layout(_PLAIN),
    "alpaca": Layout(_ALPACA, between="\n\n### Input:\n"),
    "vicuna": Layout(_VICUNA),
    "zephyr": Layout(_ZEPHYR),
    "chatml": Layout(_CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama2": Layout(_LLAMA2),
    "llama3": Layout(_LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "mistral": Layout(_MISTRAL),
    "gemma": Layout(_GEMMA, ("<start_of_turn>", "<end_of_turn>")),
}
