"""The lab's tokenizer: every printable ASCII character, a few whole words, and a chat template."""

from transformers import AddedToken, Qwen2Tokenizer

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
WORDS = ("\\boxed{", "wait ", "yes", "no")
NEWLINE, SPACE = "\u010a", "\u0120"
"""How a byte-level vocabulary spells them."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> Qwen2Tokenizer:
    """Return Qwen2's own tokenizer class with a vocabulary of at most 128 entries and no merges.

    `AutoTokenizer` uses that class for every folder of this architecture, whatever the folder says: with another class the
    loaded tokenizer would not be the saved one. Decoding gives back ASCII text exactly.
    """
    specials = [PAD, USER, ASSISTANT, END, "<|system|>", "<|unk|>"]
    entries = [*specials, *WORDS, NEWLINE, SPACE, *(chr(code) for code in range(33, 127))]
    tokenizer = Qwen2Tokenizer(
        vocab={entry: index for index, entry in enumerate(entries)},
        merges=[],
        pad_token=PAD,
        eos_token=END,
        unk_token="<|unk|>",
        additional_special_tokens=[USER, ASSISTANT, "<|system|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
