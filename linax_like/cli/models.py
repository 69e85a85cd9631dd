"""A language model and its tokenizer, from whichever kind of folder it was kept in."""

import json
from pathlib import Path

from ..interop import huggingface, load_pretrained
from ..models import LanguageModel
from ..tokenizers import AbstractTokenizer, ByteTokenizer, load_tokenizer
from ..training import load_run


def load_model(folder: str) -> tuple[LanguageModel, AbstractTokenizer]:
    """The model in the folder of a run, one that `save_pretrained` wrote, or a Hugging Face folder.

    The tokenizer is the folder's `tokenizer.json`, else bytes.

    **Raises:** `ValueError` if the folder is none of these, or holds another kind of model.
    """
    kind = _read_config(folder)
    if "model_type" in kind:
        model = huggingface.load(folder)
        return model, load_tokenizer(folder)
    model = load_run(folder).model if kind.get("type") == "RunConfig" else load_pretrained(folder)
    if not isinstance(model, LanguageModel):
        raise ValueError(
            f"The model in `{folder}` is a `{type(model).__name__}`, which does not generate: give "
            "the folder of a language model."
        )
    has_tokenizer = (Path(folder) / "tokenizer.json").is_file()
    return model, load_tokenizer(folder) if has_tokenizer else ByteTokenizer()


def _read_config(folder: str) -> dict:
    """What `config.json` holds, which tells the kinds of folders apart."""
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise ValueError(f"The folder `{folder}` is missing.")
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise ValueError(f"`{folder}` lacks a readable `config.json`: it holds no model.")
    return config
