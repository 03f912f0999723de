"""Chat templates of published models, as far as thinking and turns go, in their authors' own shape: where they open a part,
where they close it, what they leave out of earlier turns. Default system texts are cut short; tools are left out."""

# ruff: noqa: RUF001  DeepSeek's tokens are spelt with full-width bars

QWEN3 = r"""
{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.last %}
            {{- '<|im_start|>assistant\n<think>\n' + reasoning_content + '\n</think>\n\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
"""
"""The response opens the part; with enable_thinking=false the prompt holds an empty, closed one."""

QWEN3_THINKING = QWEN3.replace(
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}",
    "{{- '<think>\\n' }}",
)
"""Qwen3-Thinking-2507: the prompt opens the part."""

R1_DISTILL = (
    r"{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    r"{% set ns = namespace(system_prompt='') %}"
    r"{%- for message in messages %}{%- if message['role'] == 'system' %}"
    r"{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}"
    r"{{ bos_token }}{{ ns.system_prompt }}"
    r"{%- for message in messages %}"
    r"{%- if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}{%- endif %}"
    r"{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}"
    r"{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    r"{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}"
    r"{%- endfor -%}"
    r"{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
"""DeepSeek-R1-Distill: the prompt opens the part."""

SMOLLM3 = r"""
{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set reasoning_mode = '/think' if enable_thinking else '/no_think' -%}
{{- '<|im_start|>system\n' -}}
{%- if messages[0].role == 'system' -%}
    {%- if '/no_think' in messages[0].content -%}{%- set reasoning_mode = '/no_think' -%}
    {%- elif '/think' in messages[0].content -%}{%- set reasoning_mode = '/think' -%}{%- endif -%}
    {{- messages[0].content.replace('/no_think', '').replace('/think', '').rstrip() + '\n\n' -}}
{%- elif reasoning_mode == '/think' -%}
    {{- 'Two sections: <think> Thought section </think> Solution section.\n\n' -}}
{%- else -%}
    {{- 'You are a helpful AI assistant named SmolLM.\n\n' -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' -%}
        {% generation %}
        {%- if reasoning_mode == '/think' -%}
            {{ '<|im_start|>assistant\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}
        {%- else -%}
            {{ '<|im_start|>assistant\n<think>\n\n</think>\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}
        {%- endif -%}
        {% endgeneration %}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<|im_start|>assistant\n' if reasoning_mode == '/think' else '<|im_start|>assistant\n<think>\n\n</think>\n' }}
{%- endif -%}
"""
"""The response opens the part, of which the system message speaks; without thinking the prompt has an empty, closed one."""

MAGISTRAL = (
    r"{{ bos_token }}{% if messages[0].role == 'system' %}{{ '[SYSTEM_PROMPT]' + messages[0].content + '[/SYSTEM_PROMPT]' }}"
    r"{% else %}{{ '[SYSTEM_PROMPT]First draft your thinking: [THINK]Your thoughts[/THINK]Here, answer.[/SYSTEM_PROMPT]' }}"
    r"{% endif %}"
    r"{% for message in messages %}{% if message.role == 'user' %}{{ '[INST]' + message.content + '[/INST]' }}"
    r"{% elif message.role == 'assistant' %}{{ message.content + eos_token }}{% endif %}{% endfor %}"
)
"""The response opens the part with a special token, of which the system message speaks, too."""

GLM4 = (
    r"[gMASK]<sop>{% for message in messages %}"
    r"{% if message.role == 'user' %}{{ '<|user|>\n' + message.content }}"
    r"{% elif message.role == 'assistant' %}{{ '<|assistant|>\n' + message.content }}{% endif %}{% endfor %}"
    r"{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
"""Nothing ends the assistant's turn but the next one."""

OWN_TOKENS = ["<|im_start|>", "<|im_end|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "[INST]", "[/INST]"]
OWN_TOKENS += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[gMASK]", "<sop>"]
"""Special tokens that these templates use."""
