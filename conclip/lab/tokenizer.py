"""The lab's tokenizer: every printable ASCII character, a few whole words, and a chat template."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, USER, ASSISTANT, END = "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>"
WORDS = ("\\boxed{", "wait ", "yes", "no", "\n")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of 128 entries or fewer; decoding gives back the exact text."""
    specials = [PAD, USER, ASSISTANT, END, "<|system|>", "<|unk|>"]
    entries = [*specials, *WORDS, *(chr(code) for code in range(32, 127))]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<|unk|>"))
    words = "|".join(word.replace("\\", "\\\\").replace("{", "\\{") for word in WORDS)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{words}|[\\s\\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token="<|unk|>",
        additional_special_tokens=[USER, ASSISTANT, "<|system|>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast
