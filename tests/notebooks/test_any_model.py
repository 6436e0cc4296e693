"""Any model gets all its pages: every chapter, full and quick, on models that nobody would publish.

A random model does no task, one with nearly uniform logits has no order at all: what has nothing to
show has to say so in a sentence.
"""

import re

import nbformat
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import calib_utils as cu
from calib_utils import paths
from calib_utils.__main__ import main
from calib_utils.book import notebooks

pytestmark = [pytest.mark.full, pytest.mark.models, pytest.mark.notebooks]

CHAPTERS = notebooks.notebook_names()
UNIFORM, SMALLEST = "nearly uniform", "smollm2-135m-instruct"
# As post-trained models, whose prompts have a template, but for one; see tests/conftest.py.
BASE = "llama"
FULL = (BASE, "qwen3", UNIFORM)
EMPTY_TABLE = re.compile(r"<tbody>\s*</tbody>")


@pytest.fixture(scope="module")
def folder_of(tiny_folder, tmp_path_factory):
    """The folder of a model: `folder_of("qwen3", real_tokens=False)`, by its architecture.

    In full, chapters force tokens down to rank 1,000, which bytes do not have: a real tokenizer.
    """

    def get(kind, real_tokens=False):
        source = tiny_folder("qwen3" if kind == UNIFORM else kind, chat=kind != BASE)
        if kind != UNIFORM and not real_tokens:
            return source
        tokenizer = AutoTokenizer.from_pretrained(source)
        config = AutoConfig.from_pretrained(source)
        if real_tokens:
            tokenizer = cu.load_model(SMALLEST).tokenizer
            tokenizer.chat_template = None if kind == BASE else tokenizer.chat_template
            config.vocab_size, config.eos_token_id = len(tokenizer), tokenizer.eos_token_id
        config.initializer_range = 0.3  # logits are far from flat
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(20)
            network = AutoModelForCausalLM.from_config(config)
            if kind == UNIFORM:
                network.get_output_embeddings().weight.mul_(1e-6)
        folder = tmp_path_factory.mktemp("models") / f"tiny-{kind.replace(' ', '-')}"
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return get


def assert_every_chapter_runs(folder, quick, tmp_path, capsys):
    command = ["run", "--model", str(folder), "--no-panel", "--device", "cpu"]
    command += ["--book-dir", str(tmp_path / "book"), "--results-dir", str(tmp_path / "rows")]
    (tmp_path / "book").mkdir()
    status = main([*command, "-p", f"quick={quick}"])
    failed = [line for line in capsys.readouterr().err.splitlines() if " failed (" in line]
    assert (status, failed) == (0, [])
    pages = paths.executed_dir(folder.name, tmp_path / "book")
    assert sorted(path.stem for path in pages.glob("*.ipynb")) == CHAPTERS
    for path in pages.glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        shown = [str(output.get("data", output.get("text"))) for output in outputs]
        assert len(shown) > 3, path.stem
        assert not [output for output in outputs if output.get("name") == "stderr"], path.stem
        assert not [text for text in shown if EMPTY_TABLE.search(text)], path.stem
        assert not [text for text in shown if re.search(r"\bnan\b", text)], path.stem


def test_every_chapter_runs_quick_on_nearly_uniform_logits(folder_of, tmp_path, capsys):
    assert_every_chapter_runs(folder_of(UNIFORM), True, tmp_path, capsys)


def test_every_chapter_runs_quick_on_every_architecture(folder_of, architecture, tmp_path, capsys):
    assert_every_chapter_runs(folder_of(architecture), True, tmp_path, capsys)


@pytest.mark.parametrize("kind", FULL)
def test_every_chapter_runs_in_full(folder_of, kind, tmp_path, capsys):
    assert_every_chapter_runs(folder_of(kind, real_tokens=True), False, tmp_path, capsys)
