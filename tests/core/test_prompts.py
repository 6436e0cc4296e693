"""What the model sees: templates, BOS, thinking switches, end tokens, surfaces, segmentations."""

import itertools
import json
import math
import shutil
import unicodedata

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

import calib_utils as cu
from calib_utils.book import check
from calib_utils.core import prompts
from calib_utils.core.prompts import Policies, Vocabulary, render
from calib_utils.errors import (
    InvalidRequestError,
    InvalidTaskError,
    ModelFormatError,
    TokenizationError,
)
from calib_utils.models.registry import stage_by_name
from calib_utils.results.measure import measure

TASK = cu.Task("t", "Name one. Answer:", ["ab", "1,2", "zoo"])
PLAIN = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
THINKING = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if SWITCH is defined and SWITCH is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def text_of(tokenizer, ids):
    return [tokenizer.decode([i]) for i in ids]


def test_a_chat_model_sees_one_user_message_and_the_generation_prompt(tokenizer_of, chat_template):
    prompt = render(tokenizer_of(chat_template), TASK)
    expected = "<|start|>user\nName one. Answer:<|end|>\n<|start|>assistant\n"
    assert (prompt.text, prompt.lead, prompt.is_chat) == (expected, "", True)
    assert prompt.ids[0] == prompt.ids[-11] == tokenizer_of().convert_tokens_to_ids("<|start|>")


def test_a_base_model_sees_the_raw_prompt_and_answers_start_with_a_space(tokenizer_of):
    tokenizer = tokenizer_of()
    prompt = render(tokenizer, TASK)
    assert (prompt.text, prompt.lead, prompt.is_chat) == (TASK.prompt, " ", False)
    assert [tokenizer.decode(s) for s in prompt.sequences.symbols] == [" ab", " 1,2", " zoo"]


@pytest.mark.parametrize("bos", [True, False])
def test_bos_comes_first_exactly_if_the_tokenizer_adds_one(tokenizer_of, bos):
    tokenizer = tokenizer_of(bos=bos)
    prompt = render(tokenizer, TASK)
    assert list(prompt.ids) == tokenizer(TASK.prompt).input_ids
    assert (prompt.ids[0] == tokenizer.bos_token_id) == bos


def test_a_template_that_writes_bos_gets_no_second_one(tokenizer_of):
    tokenizer = tokenizer_of("{{ bos_token }}" + PLAIN, bos=True)
    assert render(tokenizer, TASK).ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
@pytest.mark.parametrize("extended", ["", "{% if loop.index > 9 %}{% break %}{% endif %}"])
def test_thinking_is_switched_off_where_the_template_can(tokenizer_of, switch, extended):
    template = THINKING.replace("SWITCH", switch).replace("{% endfor %}", extended + "{% endfor %}")
    prompt = render(tokenizer_of(template), TASK)
    assert prompt.text.endswith("assistant\n<think>\n\n</think>\n\n")
    assert prompt.lead == ""


PARTS = "{% for p in m['content'] if p['type'] is defined %}{{ p['text'] }}{% endfor %}"


def template_of(before_reply="", generation="", content="{{ m['content'] }}"):
    turn = "{% for m in messages %}<|start|>{{ m['role'] }}\n"
    reply = "{% if m['role'] == 'assistant' %}" + before_reply + "{% endif %}"
    asks = "{% if add_generation_prompt %}<|start|>assistant\n" + generation + "{% endif %}"
    return turn + reply + content + "<|end|>{% endfor %}" + asks


@pytest.mark.parametrize(
    ("template", "lead"),
    [
        (template_of(), ""),
        (template_of(" "), " "),
        (template_of("Sure: "), "Sure: "),
        (template_of("{{ '\\n' }}"), "\n"),
        (template_of("<think></think>\n", "<think></think>"), "\n"),
        (template_of(content=PARTS), ""),
        (template_of(" ", content=PARTS), " "),
    ],
)
def test_an_answer_starts_with_what_the_template_writes_before_a_reply(
    tokenizer_of, template, lead
):
    tokenizer = tokenizer_of(template)
    prompt = render(tokenizer, TASK)
    assert prompt.text.startswith("<|start|>user\nName one. Answer:<|end|><|start|>assistant\n")
    assert prompt.lead == lead
    written = [tokenizer.decode(s) for s in prompt.sequences.symbols]
    assert written == [lead + answer for answer in TASK.answers]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (template_of(generation="<think>\n"), "opens a thought, <think>"),
        (template_of("<think>\n", "<think>\n"), "opens a thought, <think>"),
        (template_of("<think>\n\n</think>\n\n", "<think>\n"), "opens a thought, <think>"),
        (template_of("<think>\n\n</think>\n\n"), r"writes '<think>.* before a reply"),
        (template_of(generation="[THINK]"), r"opens a thought, \[THINK\]"),
        (template_of("<|start|>final"), r"writes '<\|start\|>final' before a reply"),
        (template_of(generation="Now: "), "does not begin a reply as"),
        (template_of(content="{{ m['content'] | length }}"), "loses the question or the reply"),
        ("{{ messages[0]['content'] }}", "loses the question or the reply"),
        ("{{ raise_exception('a system message is needed') }}", "a system message is needed"),
        (PLAIN + "{{ [1, 2] | random }}", "No filter named 'random'"),
        (PLAIN + "{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ bos_token }}{{ bos_token }}" + PLAIN, "begins with '<.start.>' twice"),
    ],
)
def test_a_template_that_puts_anything_else_there_is_a_named_error(tokenizer_of, template, said):
    with pytest.raises(ModelFormatError, match=said):
        render(tokenizer_of(template), TASK)


@pytest.mark.parametrize("after", ["\n</answer><|end|>", " over<|end|>\n"])
def test_a_reply_with_text_before_its_end_token_does_not_end_with_that(tokenizer_of, after):
    reply = "{% for m in messages[1:] %}{{ m['content'] }}AFTER{% endfor %}".replace("AFTER", after)
    tokenizer = tokenizer_of("{{ messages[0]['content'] }}\n" + reply)
    with pytest.raises(ModelFormatError, match=r"closes a reply with .*use end='line'"):
        render(tokenizer, TASK)
    assert not render(tokenizer, TASK, Policies(end="none")).end_ids


@pytest.mark.parametrize("date", ["{{ date_string }}", "{{ strftime_now('%d %b %Y') }}"])
def test_the_clock_of_a_template_stands(tokenizer_of, date):
    from transformers.utils.chat_template_utils import render_jinja_template

    tokenizer = tokenizer_of(date + PLAIN)
    assert render(tokenizer, TASK).text == "26 Jul 2024" + TASK.prompt
    turns = [{"role": "user", "content": "x"}]
    now, _ = render_jinja_template([turns], chat_template="{{ strftime_now('%Y') }}")
    assert int(now[0]) > 2024, "only here"


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        *((name, "base") for name in ("Qwen--Qwen3-0.6B-Base", "unsloth--Qwen3.5-35B-A3B-Base")),
        *((name, "base") for name in ("google--gemma-3-270m", "qwen3-8b-base-q4_k_m", "x-4b-pt")),
        *((name, "post-trained") for name in ("Qwen--Qwen3-8B", "google--gemma-3-4b-it@main")),
        *((name, "post-trained") for name in ("Base-7B-Instruct", "R1-Distill-Qwen-7B")),
        ("gpt-pt-br", None),  # a language
        *((name, "base") for name in ("chatglm3-6b-base", "Italian-it-base")),  # the last mark
        *((name, None) for name in ("Qwen--Qwen2.5-7B", "database-pt2", "mine")),
    ],
)
def test_a_name_tells_the_stage_of_a_model(name, stage):
    assert (stage_by_name(name) or (None,))[0] == stage


@pytest.mark.parametrize(
    ("name", "stops", "chat"),
    [
        ("tiny-base", None, False),
        ("tiny-it", ["<|start|>"], True),
        ("own", None, True),
        ("own", ["<|start|>"], False),  # it never ends a turn
        ("own", ["<|start|>", "<|end|>"], True),
    ],
)
def test_the_stage_decides_on_the_template_unless_the_user_does(
    tiny_folder, tmp_path, capsys, name, stops, chat
):
    folder = shutil.copytree(tiny_folder("llama", chat=True), tmp_path / name)
    model = cu.load_model(folder, device="cpu")
    if stops:
        ids = model.tokenizer.convert_tokens_to_ids(stops)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
        model = cu.load_model(folder, device="cpu")
    assert bool(model.tokenizer.chat_template) == chat and model.key == name
    prompts_of = {None: cu.render_prompt(model, TASK)}
    for asked in (True, False):
        one = cu.load_model(folder, device="cpu", chat=asked)
        prompts_of[asked] = cu.render_prompt(one, TASK)
        assert one.key == f"{name}@chat={'yes' if asked else 'no'}"
        cu.show_prompt(one, TASK)
        assert f"seen so because  chat={asked} was asked for" in capsys.readouterr().out
        cu.evaluate(one, "rng-1", results_dir=tmp_path / "rows")
        assert check.recompute(tmp_path / "rows" / one.key / "rng-1").same.all()
    assert prompts_of[None].ids == prompts_of[chat].ids != prompts_of[not chat].ids
    cu.show_prompt(model, TASK)
    assert f"; chat={not chat} overrides" in capsys.readouterr().out


def test_a_template_that_is_not_there_cannot_be_asked_for(tiny_folder, tiny):
    model = cu.load_model(tiny_folder("llama"), device="cpu", chat=True)
    with pytest.raises(ModelFormatError, match="has no chat template: leave chat=True out"):
        cu.render_prompt(model, TASK)
    with pytest.raises(InvalidRequestError, match="chat=True comes too late"):
        cu.load_model(tiny("llama"), chat=True)
    for late in ({"dtype": "bfloat16"}, {"revision": "main"}, {"device_map": "balanced"}):
        (named,) = late
        with pytest.raises(InvalidRequestError, match=f"{named}=.* comes too late"):
            cu.load_model(tiny("llama"), **late)
    assert cu.load_model(tiny("llama"), dtype="float32", device="cpu") is tiny("llama")
    with pytest.raises(InvalidRequestError, match="chat='yes': give True, False"):
        cu.load_model(tiny_folder("llama"), chat="yes")


@pytest.mark.parametrize(
    ("prompt", "answers", "policies", "said"),
    [
        # Answers would be improbable.
        ("Name one: ", ["ab"], {}, "the prompt ends in ' '"),
        ("Name one:\t", ["ab"], {}, r"the prompt ends in '\\t'"),
        ("Say <|end|>:", ["ab"], {}, r"the prompt contains '<\|end\|>', a special token"),
        ("<|start|>Say:", ["ab"], {}, r"the prompt contains '<\|start\|>'"),
        # Answers could not be told apart, or would end early.
        ("Name one:", ["Ab", "ab"], {"surface": "any_case"}, "'Ab' and 'ab' share the form"),
        ("p:", ["a<|end|>b"], {}, "contains the end token"),
        ("p:", ["a\nb"], {"end": "line"}, "contains the end token"),
    ],
)
def test_a_raw_prompt_or_answers_that_mislead_are_refused(
    tokenizer_of, prompt, answers, policies, said
):
    with pytest.raises(TokenizationError, match=said):
        render(tokenizer_of(bos=True), cu.Task("t", prompt, answers), Policies(**policies))


def test_after_a_line_break_a_base_models_answers_start_the_line(tokenizer_of):
    prompt = render(tokenizer_of(), cu.Task("t", "One of:\n", ["ab"]))
    assert (prompt.lead, prompt.text) == ("", "One of:\n")


def test_special_tokens_of_the_template_are_refused_in_a_message_too(tokenizer_of):
    template = template_of(generation="<think></think>")
    tokenizer = tokenizer_of(template)
    tokenizer.add_tokens(["<think>", "</think>", "zo"])
    render(tokenizer, TASK)  # "zo" is an ordinary word
    for message in ("What is <think>?", "<|start|>"):
        with pytest.raises(TokenizationError, match="the prompt contains '<"):
            render(tokenizer, cu.Task("t", message, ["ab"]))


def test_the_end_of_turn_of_the_template_goes_before_the_tokenizers_eos(
    tokenizer_of, chat_template
):
    template = chat_template.replace("<|end|>", "<|turn|>")
    tokenizer = tokenizer_of(template, eos="<|end|>", specials=["<|turn|>"])
    assert render(tokenizer, TASK).end_ids == (tokenizer.convert_tokens_to_ids("<|turn|>"),)
    assert tokenizer.eos_token == "<|end|>"


@pytest.mark.parametrize("template", [None, PLAIN, PLAIN.replace("}}", "}} over")])
def test_without_an_end_of_turn_the_end_is_eos(tokenizer_of, template):
    tokenizer = tokenizer_of(template, eos="<|start|>")
    assert text_of(tokenizer, render(tokenizer, TASK).end_ids) == ["<|start|>"]


def test_without_an_end_token_the_other_policies_work(tokenizer_of):
    tokenizer = tokenizer_of(eos=None)
    with pytest.raises(ModelFormatError, match="no end token: use end='line' or end='none'"):
        render(tokenizer, TASK)
    assert render(tokenizer, TASK, Policies(end="none")).end_ids == ()
    ends = render(tokenizer, TASK, Policies(end="line")).end_ids
    assert text_of(tokenizer, ends) == ["\n"]


def test_end_line_is_eos_and_every_token_that_starts_a_line(tokenizer_of):
    tokenizer = tokenizer_of()
    ends = render(tokenizer, TASK, Policies(end="line")).end_ids
    assert sorted(text_of(tokenizer, ends)) == ["\n", "<|end|>"]
    assert list(ends) == sorted(ends)


def test_all_tokenizations_sum_the_probability_of_every_segmentation(tiny):
    model = tiny("llama")
    prompt = cu.render_prompt(model, TASK, tokenizations="all")
    canonical = cu.render_prompt(model, TASK).sequences.symbols
    assert set(canonical) < set(prompt.sequences.symbols)
    found = measure(model, prompt, [(cu.NoCutoff(), 1.0)]).answer_log_p[:, 0]
    for index, answer in enumerate(TASK.answers):
        expected = 0.0
        for symbols, owner in zip(prompt.sequences.symbols, prompt.sequences.answer, strict=True):
            if owner != index:
                continue
            assert model.tokenizer.decode(symbols) == " " + answer
            log_p, context = 0.0, list(prompt.ids)
            for token in (*symbols, *prompt.end_ids):
                log_p += log_p_next(model, context)[token]
                context.append(token)
            expected += log_p.exp().item()
        assert found[index] == pytest.approx(math.log(expected), abs=1e-4)
    one, many = (
        cu.answer_probabilities(model, TASK, tokenizations=how).log_p
        for how in ("canonical", "all")
    )
    assert (many[:2] > one[:2]).all() and (many[:2] > one[:2] + 0.1).any()
    assert many[2] == pytest.approx(one[2], abs=1e-4)  # ' zoo' has one segmentation only


def log_p_next(model, context):
    with torch.no_grad():
        return model.network(torch.tensor([context])).logits[0, -1].double().log_softmax(-1)


@pytest.mark.parametrize(
    ("normalizer", "answer", "written"),
    [
        (normalizers.Lowercase(), "Ab", "'ab'"),
        (normalizers.NFKC(), "\u00bd", r"'1\\u20442'"),
        (normalizers.StripAccents(), "e\u0323\u0302x", "'ex'"),
    ],
)
def test_an_answer_that_the_tokenizer_writes_differently_is_refused(
    tokenizer_of, normalizer, answer, written
):
    tokenizer = tokenizer_of()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizer])
    answer = unicodedata.normalize("NFC", answer)
    with pytest.raises(TokenizationError, match=f"is written {written} by this tokenizer"):
        render(tokenizer, cu.Task("t", "p:", [answer]))


def test_a_tokenizer_may_write_accents_apart_but_not_all_tokenizations(tokenizer_of):
    tokenizer, task = tokenizer_of(), cu.Task("t", "p:", ["caf\u00e9"])
    tokenizer.backend_tokenizer.normalizer = normalizers.NFD()
    prompt = render(tokenizer, task)
    assert tokenizer.decode(prompt.sequences.symbols[0]) == " cafe\u0301"
    with pytest.raises(TokenizationError, match="use tokenizations='canonical'"):
        render(tokenizer, task, Policies(tokenizations="all"))


def test_characters_that_a_tokenizer_does_not_know_are_refused():
    tokenizer = cu.character_tokenizer(cu.Task("t", "go:", ["ab"]))
    for task in (cu.Task("t", "go:", ["ac"]), cu.Task("t", "no:", ["ab"])):
        with pytest.raises(TokenizationError, match="characters that it does not know"):
            render(tokenizer, task)


def test_surfaces_add_spaces_and_cases(tokenizer_of, chat_template):
    tokenizer = tokenizer_of(chat_template)
    task = cu.Task("t", "p", ["Ab c"])

    def forms(surface):
        symbols = render(tokenizer, task, Policies(surface=surface)).sequences.symbols
        return {tokenizer.decode(s) for s in symbols}

    assert forms("exact") == {"Ab c"}
    assert forms("any_space") == {"Ab c", " Ab c"}
    both = {"Ab c", "ab c", "AB C", "Ab C"}
    assert forms("any_case") == both | {" " + form for form in both}
    assert render(tokenizer, cu.Task("t", "p", ["Ab", "ab"])).trie.n_answers == 2


def test_an_answer_that_merges_with_the_prompt_is_refused(tokenizer_of):
    task = cu.Task("t", "Say a", ["x", "b"])
    tokenizer = tokenizer_of(PLAIN)
    with pytest.raises(TokenizationError, match="answer 'b' merges with the prompt"):
        render(tokenizer, task)


@pytest.mark.parametrize("field", ["end", "tokenizations", "surface"])
@pytest.mark.parametrize("value", ["loose", "", None])
def test_unknown_policies_are_refused(field, value):
    with pytest.raises(InvalidTaskError, match=f"{field}={value!r} does not exist: choose from"):
        Policies(**{field: value})


def test_only_policies_other_than_the_defaults_show_in_a_folder_name():
    assert Policies().suffix == ""
    assert Policies(end="line", surface="any_case").suffix == "@end=line@surface=any_case"


@pytest.mark.parametrize("chat", [True, False])
def test_describe_shows_the_exact_prompt_and_the_first_answer(tiny, chat, capsys):
    model = tiny("llama", chat=chat, bos=not chat)
    cu.show_prompt(model, TASK)
    shown = capsys.readouterr().out
    prompt = cu.render_prompt(model, TASK)
    assert f"{'-' * 72}\n{prompt.text}\n{'-' * 72}" in shown
    assert f"{prompt.trie.n_nodes} nodes" in shown
    assert f"each starting with {prompt.lead!r}" in shown
    assert f"'<|end|>':{prompt.end_ids[0]}" in shown
    assert ("base model" in shown) != chat


# --- Bytes behind tokens, and every way to write a string ---


@pytest.fixture(scope="module")
def tiny_vocabulary(tokenizer_of):
    return Vocabulary(tokenizer_of())


@pytest.fixture(scope="module")
def sentencepiece():
    """A SentencePiece-style vocabulary: word-start marks, byte fallback, a newline twice."""
    pieces = ["<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "a", "▁a", "\n", "é"]
    backend = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    return tokenizer, {piece: i for i, piece in enumerate(pieces)}


@given(st.text(min_size=1, max_size=12))
def test_the_tokens_of_a_text_are_one_of_its_segmentations(tokenizer_of, tiny_vocabulary, text):
    assert tuple(tokenizer_of()(text).input_ids) in tiny_vocabulary.segmentations(text)


def test_special_tokens_write_nothing(tiny_vocabulary):
    assert tiny_vocabulary.starting_with("<|") == []
    assert len(tiny_vocabulary.starting_with("")) == 256 + 4


@given(st.text(alphabet="ab1, x", min_size=1, max_size=7))
def test_segmentations_are_those_of_brute_force(tokenizer_of, tiny_vocabulary, text):
    tokenizer = tokenizer_of()
    by_text = {tokenizer.decode([token]): token for token in range(256 + 4)}
    expected = set()
    cuts = range(1, len(text))
    for count in range(len(text)):
        for chosen in itertools.combinations(cuts, count):
            bounds = [0, *chosen, len(text)]
            pieces = [text[i:j] for i, j in itertools.pairwise(bounds)]
            if all(piece in by_text for piece in pieces):
                expected.add(tuple(by_text[piece] for piece in pieces))
    found = tiny_vocabulary.segmentations(text)
    assert len(found) == len(set(found))
    assert set(found) == expected


def test_an_answer_after_a_prompt_of_byte_tokens_is_read_as_it_is_written(sentencepiece):
    tokenizer, _ = sentencepiece
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    for prompt in ("\u6c34\u679c\uff1a\n", "\u6c34\u679c\uff1a", "\U0001f34e\u6c34\uff1a"):
        task = cu.Task("t", prompt, ["\u6771\u4eac"])
        assert render(tokenizer, task, Policies(surface="any_space")).sequences.symbols


def test_sentencepiece_tokens_and_their_byte_fallbacks(sentencepiece):
    tokenizer, ids = sentencepiece
    known = Vocabulary(tokenizer)
    space, a, both = ids["▁"], ids["a"], ids["▁a"]
    space_byte, a_byte = ids["<0x20>"], ids["<0x61>"]
    expected = {(both,), *itertools.product((space, space_byte), (a, a_byte))}
    assert set(known.segmentations(" a")) == expected
    assert set(known.segmentations("é")) == {(ids["é"],), (ids["<0xC3>"], ids["<0xA9>"])}
    assert known.starting_with("\n") == sorted([ids["\n"], ids["<0x0A>"]])
    assert ids["</s>"] not in known.starting_with("")


def test_added_tokens_that_are_not_special_are_plain_text(tokenizer_of):
    tokenizer = tokenizer_of()
    tokenizer.add_tokens(["é x"])
    token = tokenizer.convert_tokens_to_ids("é x")
    assert (token,) in Vocabulary(tokenizer).segmentations("é x")


def test_a_text_with_too_many_segmentations_is_refused(tiny_vocabulary, monkeypatch):
    monkeypatch.setattr(prompts, "MAX_SEGMENTATIONS", 100)
    assert len(tiny_vocabulary.segmentations("ab" * 6)) == 64
    with pytest.raises(TokenizationError, match="more than 100 segmentations"):
        tiny_vocabulary.segmentations("ab" * 7)


def test_a_text_that_cannot_be_written_is_refused(tokenizer_of):
    known = Vocabulary(tokenizer_of())
    known._ids.pop(b"x")
    with pytest.raises(TokenizationError, match="'ax' cannot be written"):
        known.segmentations("ax")


def test_a_tokenizer_of_another_kind_is_refused():
    backend = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ModelFormatError, match="neither byte-level nor SentencePiece"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_a_system_message_stands_before_the_question(tokenizer_of, chat_template):
    task = cu.Task("t", "Name one:", ["ab"], system="Be brief.")
    text = render(tokenizer_of(chat_template), task).text
    assert text.index("<|start|>system\nBe brief.") < text.index("<|start|>user\nName one:")
    with pytest.raises(InvalidTaskError, match="put the message into the prompt"):
        render(tokenizer_of(), task)
    deaf = chat_template.replace(
        "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"
    )
    with pytest.raises(ModelFormatError, match="loses the system message"):
        render(tokenizer_of(deaf), task)


def test_aliases_are_sequences_of_their_answer(tokenizer_of):
    task = cu.Task("t", "Name one:", ["ab", "zoo"], aliases={"zoo": ["zoos", "zo"]})
    prompt = render(tokenizer_of(), task)
    assert prompt.sequences.answer == (0, 1, 1, 1) and prompt.trie.n_answers == 2
