"""Tiny random models of every architecture of the panel, with a byte-level tokenizer built here.

Fixtures hand out functions, since test modules cannot import from one another. They import torch
themselves: the process that only hands tests to others reads this file too, and they wait for it.
"""

import os

# Before transformers is imported: no network, no bars.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TQDM_DISABLE="1")

import json
import random
import shutil
import socket
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import settings

import calib_utils as cu

settings.register_profile("calib", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("calib")

WINDOW = 8
REAL_CACHE_MARKERS = ("models", "notebooks")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
MERGES = (("a", "b"), ("Ġ", "a"), ("1", ","), ("Ġa", "b"))

_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_hidden_layers": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
# model type, and what differs from _SMALL. Windows are shorter than any prompt.
ARCHITECTURES = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3-sliding": ("qwen3", {**_SLIDING, "use_sliding_window": True, "max_window_layers": 1}),
    "qwen3-moe": ("qwen3_moe", _EXPERTS),
    "qwen3-moe-sliding": (
        "qwen3_moe",
        {**_EXPERTS, "use_sliding_window": True, "sliding_window": WINDOW},
    ),
    "qwen3.5": ("qwen3_5_text", _LINEAR),
    "qwen3.5-moe": (
        "qwen3_5_moe_text",
        {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 32},
    ),
    "olmo3": ("olmo3", _SLIDING),
    "gemma3": ("gemma3_text", {**_SLIDING, "query_pre_attn_scalar": 8}),
    # What the larger Gemma3 checkpoints are: the text model inside one that also sees.
    "gemma3-multimodal": ("gemma3", {**_SLIDING, "query_pre_attn_scalar": 8}),
    # What the hub holds of Qwen3.5: all of its checkpoints also see.
    "qwen3.5-multimodal": ("qwen3_5", _LINEAR),
    "qwen3.5-moe-multimodal": (
        "qwen3_5_moe",
        {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 32},
    ),
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION = {"depth": 1, "num_heads": 2, "out_hidden_size": 32}


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    """Every architecture in turn, unless a test names its own."""
    return request.param


@pytest.fixture(scope="session")
def architectures():
    """The names of all architectures."""
    return tuple(ARCHITECTURES)


def build_tokenizer(template=None, bos=False, eos="<|end|>", specials=()):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from calib_utils.core import prompts

    vocab = {piece: byte for piece, byte in prompts._byte_alphabet().items()}
    for left, right in MERGES:
        vocab[left + right] = len(vocab)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=list(MERGES)))
    # No word splitting, so that a merge can reach across any two bytes.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>", "<|start|>", *specials])
    if bos:
        start = backend.token_to_id("<|start|>")
        backend.post_processor = processors.TemplateProcessing(
            single="<|start|> $A", special_tokens=[("<|start|>", start)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos,
        bos_token="<|start|>",
        chat_template=template,
        additional_special_tokens=["<|end|>", *specials],
    )


def save_tiny(folder, architecture, template=None, bos=False):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    tokenizer = build_tokenizer(template, bos)
    model_type, own = ARCHITECTURES[architecture]
    options = {**_SMALL, **own, "vocab_size": len(tokenizer), "dtype": "float32"}
    if model_type == "gemma3":
        text = {**options, "model_type": "gemma3_text"}
        options = {"text_config": text, "vision_config": _VISION, "tie_word_embeddings": False}
    auto = AutoModelForCausalLM
    if model_type in ("qwen3_5", "qwen3_5_moe"):
        vision = {**_VISION, **_QWEN_VISION}
        options = {"text_config": options, "vision_config": vision, "tie_word_embeddings": False}
        auto = AutoModelForImageTextToText  # the other would save the text model alone
    # Vectors keep the library's own start, and some of it is drawn: the decay rates of linear
    # attention, on which depends how far its chunks and its single steps are apart.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        network = auto.from_config(AutoConfig.for_model(model_type, **options))
    # Drawn by NumPy: torch's normal numbers differ in their last digits between processors.
    generator = np.random.default_rng(20)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            # Wide enough that logits depend on the whole context and are far from flat.
            drawn = generator.normal(scale=0.3, size=parameter.shape).astype(np.float32)
            parameter.data = torch.from_numpy(drawn)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_gguf(folder, path):
    """The tiny Llama of a folder as a GGUF file, unquantised."""
    import gguf
    from safetensors.torch import load_file

    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    ids = tokenizer["model"]["vocab"] | special
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(ids, key=ids.get))
    writer.add_token_types([3 if t in special else 1 for t in sorted(ids, key=ids.get)])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(ids["<|end|>"])
    writer.add_bos_token_id(ids["<|start|>"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(folder / "model.safetensors").items():
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def tiny_gguf(tiny_folder, tmp_path_factory):
    """The tiny Llama as a GGUF file of 140 kB."""
    return save_gguf(tiny_folder("llama"), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="session")
def tokenizer_of():
    """Builds the tiny tokenizer: `tokenizer_of(template=None, bos=False, eos="<|end|>")`."""
    return build_tokenizer


@pytest.fixture(scope="session")
def chat_template():
    return CHAT_TEMPLATE


@pytest.fixture(autouse=True)
def isolated_cache(request, tmp_path_factory, monkeypatch):
    """No test writes to the user's cache, but for those marked to need real models.

    For the test only: kernels that other plugins start must find the real one.
    """
    if not any(map(request.node.get_closest_marker, REAL_CACHE_MARKERS)):
        folder = tmp_path_factory.getbasetemp() / "cache"
        monkeypatch.setenv("CALIB_UTILS_CACHE", str(folder))


@pytest.fixture
def own_cache(tmp_path, isolated_cache, monkeypatch):
    """An empty cache of the test's own."""
    monkeypatch.setenv("CALIB_UTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of a saved tiny model: `tiny_folder("llama", chat=False, bos=False)`."""
    made = {}

    def get(architecture="llama", chat=False, bos=False):
        key = f"{architecture}{'-chat' if chat else ''}{'-bos' if bos else ''}"
        if key not in made:
            folder = tmp_path_factory.mktemp("models") / f"tiny-{key}"
            made[key] = save_tiny(folder, architecture, CHAT_TEMPLATE if chat else None, bos)
        return made[key]

    return get


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """A loaded tiny model, shared by the session: `tiny("llama", chat=False, bos=False)`."""
    loaded = {}

    def get(architecture="llama", chat=False, bos=False):
        folder = tiny_folder(architecture, chat, bos)
        if folder not in loaded:
            loaded[folder] = cu.load_model(folder, device="cpu")
        return loaded[folder]

    return get


@pytest.fixture(scope="session")
def cached():
    """Puts a folder into a cache of the hub's: `cached(cache, folder, "owner/name")` -> commit."""
    commit = "0123456789" * 4

    def put(cache, folder, repository):
        where = cache / f"models--{repository.replace('/', '--')}"
        shutil.copytree(folder, where / "snapshots" / commit)
        (where / "refs").mkdir()
        (where / "refs" / "main").write_text(commit)
        return commit

    return put


@pytest.fixture
def hub(cached, tmp_path, monkeypatch):
    """Puts a folder into a hub cache of the test's own: `hub(folder, "owner/name")` -> commit."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))  # for kernels and other children
    return partial(cached, cache)


@pytest.fixture
def book_style():
    """The style of the book's figures for one test, whose figures are closed after it."""
    import matplotlib.pyplot as plt

    from calib_utils import figures

    with plt.rc_context():
        figures.use_style()
        yield
    plt.close("all")


@pytest.fixture
def fresh_tiny(tiny_folder):
    """A tiny model that a test may spoil."""
    return lambda *args, **kwargs: cu.load_model(tiny_folder(*args, **kwargs), device="cpu")


@pytest.fixture(scope="session")
def small_task():
    """Answers that share prefixes, differ in depth and use the tokenizer's merges."""
    answers = ["1,2,3", "1,2,4", "1,3", "1", "ab", "abab", "a b ab", "cab", "x", "zebra"]
    return cu.Task("small", "Pick one of the ten words on the list at random. Answer:", answers)


@pytest.fixture(scope="session")
def measure_logits():
    """`measure` with logits given instead of a model: `(trie, logits [node, vocab], settings)`."""
    import torch

    from calib_utils.models import scoring
    from calib_utils.results.measure import measure

    def get(trie, logits, settings, *, batch=16, prompt_ids=(), **options):
        def score(*args):
            for nodes in np.array_split(np.arange(trie.n_nodes), -(-trie.n_nodes // batch)):
                yield nodes, torch.from_numpy(np.asarray(logits, dtype=np.float32)[nodes])

        with patch.object(scoring, "score", score):
            return measure(None, SimpleNamespace(trie=trie, ids=prompt_ids), settings, **options)

    return get


@pytest.fixture
def write_task(tmp_path):
    def write(content):
        path = tmp_path / "task.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


@pytest.fixture(scope="session")
def free_port():
    """Gives a port nobody listens on, for a server that starts later: `free_port()`.

    It is none of those the system hands out, one of which another program could be given before.
    """
    given = set()

    def get():
        while True:
            port = random.SystemRandom().randrange(10_000, 32_000)
            with suppress(OSError), socket.create_server(("127.0.0.1", port)):
                if port not in given:
                    given.add(port)
                    return port

    return get


# The parameters that every notebook about one model has.
_PARAMETERS = """\
model = ""
revision = ""
dtype = "float32"
device = "auto"
seed = 0
results_dir = ""
quick = False"""


@pytest.fixture(scope="session")
def write_notebook():
    """Writes a notebook into a project's folder: `write_notebook(folder, name, content)`.

    The content is code cells in order, or a pair of tags and cells, parameters first.
    """
    import nbformat

    def write(folder, name, content):
        tags, cells = content if isinstance(content, tuple) else ([], [_PARAMETERS, *content])
        first, *others = map(nbformat.v4.new_code_cell, cells)
        first.metadata["tags"] = ["parameters", *tags]
        kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
        made = nbformat.v4.new_notebook(cells=[first, *others], metadata={"kernelspec": kernel})
        nbformat.write(made, folder / "notebooks" / f"{name}.ipynb")

    return write


@pytest.fixture(scope="session")
def small_project(write_notebook):
    """A copy of the project with notebooks by name, no rows, no pages: `small_project(to, {})`."""
    from calib_utils import paths

    def copy(folder, notebooks, parts=("calib_utils", "data/tasks", "data/panel")):
        skip = shutil.ignore_patterns("__pycache__", ".state")
        for name in parts:
            shutil.copytree(paths.project_root() / name, folder / name, ignore=skip)
        shutil.copy(paths.project_root() / "_config.yml", folder)
        for name in ("notebooks", "book"):
            (folder / name).mkdir(exist_ok=True)
        for name, content in notebooks.items():
            write_notebook(folder, name, content)
        return folder

    return copy


@pytest.fixture
def as_project(monkeypatch):
    """Makes a folder the project of this process and of the kernels that it starts."""
    from calib_utils import paths

    def enter(folder):
        monkeypatch.setattr(paths, "project_root", lambda: folder)
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.chdir(folder)
        return folder

    return enter


@pytest.fixture(scope="session")
def write_page():
    """Writes an executed notebook: `write_page(path, *cells, **glued)`.

    Its last cell printed something and glued these values.
    """
    import nbformat

    kind = "application/papermill.record/text/plain"

    def write(path, *cells, **glued):
        outputs = [nbformat.v4.new_output("stream", text="printed")]
        for name, value in glued.items():
            said = {"metadata": {"scrapbook": {"name": name}}, "data": {kind: repr(value)}}
            outputs.append(nbformat.v4.new_output("display_data", **said))
        cells = [*cells, nbformat.v4.new_code_cell("x", outputs=outputs)]
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        return path

    return write


@pytest.fixture(scope="session")
def glued():
    """Every number that a committed page glues into the book, as text: `glued(model, chapter)`."""
    import nbformat

    from calib_utils import paths
    from calib_utils.book import notebooks

    def read(model, notebook):
        page = paths.executed_dir(model) / f"{notebook}.ipynb"
        return notebooks.glued(nbformat.read(page, as_version=4))

    return read


@pytest.fixture(scope="session")
def counted():
    """`with counted() as (operations, reads)`: what is dispatched, and what a GPU would have to
    hand to the host. A copy to the CPU is no operation on a CPU, so reads are counted by name."""
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    names = {"cpu", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__"}

    @contextmanager
    def count():
        operations, reads = Counter(), Counter()

        class Operations(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                operations[function._schema.name.removeprefix("aten::")] += 1
                return function(*args, **(kwargs or {}))

        class Reads(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                reads.update({getattr(function, "__name__", "")} & names)
                return function(*args, **(kwargs or {}))

        with Operations(), Reads():
            yield operations, reads

    return count
