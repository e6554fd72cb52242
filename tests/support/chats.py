"""Chat templates as they are found in the wild (shortened to what matters), and a tokenizer of bytes to render with."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|eot|>",
    "<|header|>",
    "</s>",
    "<s>",
    "[INST]",
    "[/INST]",
    "<turn>",
    "</turn>",
)
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|header|>{{ m.role }}<|header|>\n\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|header|>assistant<|header|>\n\n{% endif %}"
)
# The system text goes to the last user message, and roles must alternate.
MISTRAL = (
    "{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set rest = messages[1:] %}"
    "{%- else %}{% set rest = messages %}{% endif %}{{- bos_token }}"
    "{%- for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{%- if m.role == 'user' %}{% if loop.revindex0 <= 1 and system is defined %}"
    "{{- '[INST] ' + system + '\n\n' + m.content + '[/INST]' }}{% else %}"
    "{{- '[INST] ' + m.content + '[/INST]' }}{% endif %}"
    "{%- else %}{{- ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
# An empty thought before the last answer, which the prompt for an answer does not have.
THINKING = (
    "{% for m in messages %}<turn>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}[thought]\n\n{% endif %}"
    "{{ m.content }}</turn>\n{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
# No end of turn at all.
BARE = (
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
HONEST = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "thinking": THINKING}


def byte_tokenizer(template: str | None = None, special: tuple[str, ...] = SPECIAL) -> PreTrainedTokenizerFast:
    """Every byte a token, and special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    return tokenizer
