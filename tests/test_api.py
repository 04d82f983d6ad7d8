"""What `import jaxlm` offers is what the modules do, and costs nothing before it is used."""

import io
import json
import re
import subprocess
import sys

import pytest

import jaxlm
from jaxlm import api
from jaxlm.cli import main
from jaxlm.convert import pretrained
from jaxlm.decode import completions
from jaxlm.decode.constraints import Constraint
from jaxlm.decode.search import hypotheses
from jaxlm.models.layers import cache_kinds
from jaxlm.train import trained_weights
from jaxlm.train.run import checkpoint, directory, integrity
from jaxlm.train.run import run as runs


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        model = jaxlm.models.llama.Config(
            vocab=259, embed=8, layers=1, heads=2, kv=1, head=4, ffn=16
        )
        data = jaxlm.Data(source="markov", seq=16, batch=4, holdout=0.001)
        optim = jaxlm.Optim(lr=3e-3, warmup=1)
        run = jaxlm.Run(name="first", model=model, data=data, optim=optim, steps=2)
        result = jaxlm.train(run)
        yield result, jaxlm.load("runs/first")


def test_the_names_are_the_modules_own(saved):
    assert jaxlm.Run is runs.Run and jaxlm.train.run is sys.modules["jaxlm.train.run"]
    assert set(jaxlm.__all__) <= set(dir(jaxlm))
    with pytest.raises(AttributeError, match="'jaxlm' has no attribute 'trian'"):
        jaxlm.trian  # noqa: B018


def test_scores_and_texts_are_those_of_the_modules(saved, capsys):
    result, model = saved
    assert jaxlm.evaluate(model)["bits_per_byte"] == pytest.approx(result.val["bits_per_byte"])
    with pytest.raises(ValueError, match="data.corrupt"):
        jaxlm.evaluate(model, jaxlm.Data(source="markov", corrupt=jaxlm.data.corrupt.mask.Mask()))
    greedy = jaxlm.Sampling(max_new=5, temperature=0)
    texts = jaxlm.generate(model, ["ab", ""], greedy)
    tokenizer = directory.tokenizer(model.folder, model.run)
    want = completions.complete(model.model, model.params, tokenizer, ["ab", ""], greedy)
    assert texts == [row.text for row in want]
    shown = "sample", str(model.folder.resolve()), "--prompt", "ab", "--max-new", "5"
    assert main.main([*shown, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == f"ab{texts[0]}\n"
    with pytest.raises(ValueError, match="prompts: 'ab' given; a list of texts"):
        jaxlm.generate(model, "ab", greedy)
    with pytest.raises(ValueError, match="run: 'configs/demo.py' given; a jaxlm.Run is needed"):
        jaxlm.train("configs/demo.py")
    with pytest.raises(ValueError, match="no such template|nonesuch"):
        jaxlm.generate(model, ["ab"], greedy, template="nonesuch")


def test_equal_prompts_are_continued_differently(saved):
    """All rows of a call had the same seed: one prompt given three times gave one text thrice."""
    settings = jaxlm.Sampling(max_new=12, seed=4)
    texts = jaxlm.generate(saved[1], ["ab", "ab", "ab"], settings)
    assert len({*texts}) == 3
    later = jaxlm.Sampling(max_new=12, seed=5)
    assert jaxlm.generate(saved[1], ["ab"], later) == texts[1:2], "row r has seed + r"


def test_every_prompt_has_n_texts(saved, capsys):
    """From Python and from the command line, with rules; a conversation goes on with one."""
    settings = jaxlm.Sampling(max_new=6, n=3, best_of=4, seed=4, banned=((97,), (98, 98)))
    texts = jaxlm.generate(saved[1], ["ab", "b"], settings)
    assert len(texts) == 6 and not any("a" in text or "bb" in text for text in texts)
    folder, own = str(saved[1].folder.resolve()), jaxlm.generate(saved[1], ["ab"], settings)
    assert own == texts[:3]
    shown = ["--max-new", "6", "--n", "3", "--best-of", "4", "--seed", "4"]
    args = ["sample", folder, "--prompt", "ab", *shown, "--banned", "97", "--banned", "98", "98"]
    assert main.main(args) == 0
    assert capsys.readouterr().out == "".join(f"ab{text}\n" for text in own)
    assert main.main(["chat", folder, "--template", "plain", *shown]) == 2
    assert "sampling.best_of: 4 given; it must be 1: a conversation" in capsys.readouterr().err
    assert main.main(["sample", folder, "--template", "plain", "--prompt", "ab", *shown[:4]]) == 0
    assert len(capsys.readouterr().out.split("\n")) >= 5
    with pytest.raises(SystemExit, match="2"):
        main.main(["sample", folder, "--max-new", "6", "--min-new", "7"])
    assert "sampling.min_new: 7 given; it must be in [0, 6]" in capsys.readouterr().err


@pytest.mark.slow
def test_drafts_change_no_text_without_temperature(saved, capsys, tmp_path):
    """From Python and from the command line, by look-up and by a model; the sum of the reports is
    told apart from the texts, and what does not go together is refused."""
    settings, prompts, reports = jaxlm.Sampling(max_new=12, temperature=0.0), ["abab", "b"], []
    texts = jaxlm.generate(saved[1], prompts, settings)
    for draft in ("lookup", saved[1]):
        speculate = jaxlm.Speculate(draft, length=3, adaptive=False, report=reports.append)
        assert jaxlm.generate(saved[1], prompts, settings, speculate=speculate) == texts
    assert reports[1].acceptance == 1.0 and reports[1].tokens_per_pass > 2
    folder = str(saved[1].folder.resolve())
    args = ["sample", folder, "--prompt", *prompts, "--max-new", "12", "--temperature", "0"]
    assert main.main([*args, "--draft", folder, "--draft-length", "3"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "".join(f"{p}{t}\n" for p, t in zip(prompts, texts, strict=True))
    assert re.fullmatch(r"speculation: \d+ of \d+ drafted .* tokens a pass\n", shown.err)
    file = tmp_path / "p.txt"
    file.write_text("a\n")
    for more, told in (
        (["--lookup", "--mtp"], "--lookup and --mtp: given together"),
        (["--mtp"], "this llama model has no multi-token prediction"),
        (["--lookup", "--regex", "a+"], "speculate: given with a constraint"),
        (["--draft-length", "3"], "draft_length: 3 given; it must be 4 without a way to draft"),
    ):
        assert main.main([*args, *more]) == 2
        assert told in capsys.readouterr().err
    bulk = ["--prompts", str(file), "--out", str(tmp_path / "o.jsonl"), "--lookup"]
    assert main.main(["sample", folder, *bulk]) == 2
    assert "--prompts: texts of a file are decoded in slots" in capsys.readouterr().err


def test_a_cache_in_8_bits_is_a_word(saved, capsys, tmp_path):
    _, model = saved
    small = jaxlm.load(model.folder, cache="int8")
    assert cache_kinds.numbers(small.model) == "int8"
    greedy = jaxlm.Sampling(max_new=5, temperature=0)
    (text,) = jaxlm.generate(small, ["ab"], greedy)
    folder = str(model.folder.resolve())
    shown = ["--max-new", "5", "--temperature", "0", "--cache", "int8"]
    assert main.main(["sample", folder, "--prompt", "ab", *shown]) == 0
    assert capsys.readouterr().out == f"ab{text}\n"
    (tmp_path / "p.txt").write_text("ab\n")
    jaxlm.generate_file(small, tmp_path / "p.txt", tmp_path / "o.jsonl", greedy)
    with pytest.raises(ValueError, match="cache"):  # texts of another cache are not gone on with
        jaxlm.generate_file(model, tmp_path / "p.txt", tmp_path / "o.jsonl", greedy)
    with pytest.raises(ValueError, match="cache: 'int4' given; it must be one of"):
        jaxlm.load(model.folder, cache="int4")


@pytest.mark.slow
def test_a_file_of_prompts_has_the_texts_of_a_list(saved, capsys, tmp_path, monkeypatch):
    """From Python and from the command line; many texts of a list come from slots, as few do from
    one batch, and beams in batches."""
    settings, prompts = jaxlm.Sampling(max_new=5, n=2, seed=3), ["ab", "b", "abba"]
    texts = jaxlm.generate(saved[1], prompts, settings)
    folder, file, out = str(saved[1].folder.resolve()), tmp_path / "p.txt", tmp_path / "out.jsonl"
    file.write_text("".join(f"{prompt}\n" for prompt in prompts))
    shown = ["--prompts", str(file), "--max-new", "5", "--n", "2", "--seed", "3"]
    assert main.main(["sample", folder, *shown, "--out", str(out), "--slots", "3"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows] == texts and rows[5]["prompt"] == "abba"
    said = capsys.readouterr().out
    assert re.fullmatch(
        r".*out.jsonl: texts of 3 prompts; \d+ tokens in .* s, .* tokens/s, .*% of .*\n", said
    )
    totals = jaxlm.generate_file(saved[1], file, out, settings)
    assert (totals.count, totals.found, totals.tokens) == (3, 3, 0)
    assert main.main(["sample", folder, *shown, "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith(
        "out.jsonl: texts of 3 prompts, 3 of them there before\n"
    )
    with pytest.raises(ValueError, match="begun with template=None, and now template='plain'"):
        jaxlm.generate_file(saved[1], file, out, settings, template="plain")
    monkeypatch.setattr(api, "TOGETHER", 5)
    monkeypatch.setattr(api, "SLOTS", 3)
    assert jaxlm.generate(saved[1], prompts, settings) == texts
    beams = jaxlm.Beams(max_new=3, num_beams=2)
    together = jaxlm.generate(saved[1], prompts, beams)
    monkeypatch.setattr(api, "TOGETHER", 2)
    assert jaxlm.generate(saved[1], prompts, beams) == together and len(together) == 3


@pytest.mark.parametrize(
    "options, message",
    [
        (["--out", "a.jsonl"], "give --prompts FILE"),
        (["--slots", "3"], "give --prompts FILE"),
        (["--prompts", "a.txt"], "--prompts: give --out FILE.jsonl"),
        (["--prompts", "a.txt", "--out", "b", "--prompt", "c"], "--prompt: given along with"),
        (["--prompts", "a.txt", "--out", "b", "--beams", "2"], "texts of a file are sampled"),
    ],
)
def test_options_without_each_other_are_refused(saved, capsys, options, message):
    assert main.main(["sample", str(saved[1].folder.resolve()), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_conversation_of_a_run_of_text_needs_a_template(saved, capsys, monkeypatch):
    folder = str(saved[1].folder.resolve())
    assert main.main(["chat", folder]) == 2
    assert "trained on text, not on conversations; name a --template" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("b\n"))
    talk = ["--template", "vicuna", "--length", "90", "--max-new", "3", "--prompt", "a"]
    assert main.main(["chat", folder, *talk, "--system", "Be brief."]) == 0
    said = capsys.readouterr().out
    assert said.startswith("> a\n") and "\n> b\n" in said
    short = ["--template", "vicuna", "--length", "9", "--prompt", "a"]
    assert main.main(["chat", folder, *short]) == 0
    assert "9 are all that the model is given; say it in fewer" in capsys.readouterr().err


@pytest.mark.slow
def test_texts_match_a_constraint(saved, capsys, tmp_path):
    constraint = Constraint(regex="[0-9]{2,3}")
    settings = jaxlm.Sampling(max_new=9, n=2, seed=1)
    texts = jaxlm.generate(saved[1], ["ab", "b"], settings, constraint=constraint)
    assert len(texts) == 4 and all(t.isdecimal() and 2 <= len(t) <= 3 for t in texts)
    folder = str(saved[1].folder.resolve())
    shown = ["sample", folder, "--prompt", "ab", "--max-new", "9", "--n", "2", "--seed", "1"]
    assert main.main([*shown, "--regex", "[0-9]{2,3}"]) == 0
    assert capsys.readouterr().out == f"ab{texts[0]}\nab{texts[1]}\n"
    (tmp_path / "schema.json").write_text('{"enum": [7, 12]}')
    schema = ["--json-schema", str(tmp_path / "schema.json")]
    assert main.main([*shown, *schema]) == 0
    assert set(capsys.readouterr().out.splitlines()) <= {"ab7", "ab12"}
    (tmp_path / "list.json").write_text('{"enum": [[7, 12]]}')
    listed = [*shown, "--json-schema", str(tmp_path / "list.json")]
    assert main.main(listed) == 0 and capsys.readouterr().out == "ab[7, 12]\n" * 2
    assert main.main([*listed, "--whitespace", "free"]) == 0
    assert capsys.readouterr().out != "ab[7, 12]\n" * 2
    assert main.main([*shown, *schema, "--choices", "a"]) == 2
    assert "choices, json_schema given; one of" in capsys.readouterr().err
    with pytest.raises(ValueError, match="only what a decoder samples"):
        jaxlm.generate(saved[1], ["ab"], jaxlm.Beams(max_new=3), constraint=constraint)


def test_texts_that_are_searched_are_those_of_the_module(saved, capsys):
    """The best texts of each prompt in a row; `jaxlm sample` shows them with their scores."""
    model = saved[1]
    tokenizer = directory.tokenizer(model.folder, model.run)
    beams = jaxlm.Beams(max_new=5, num_beams=3, num_return_sequences=2, length_penalty=0.5)
    found = hypotheses.complete(model.model, model.params, tokenizer, ["ab", ""], beams)
    texts = jaxlm.generate(model, ["ab", ""], beams)
    assert texts == [one.text for row in found for one in row] and len(texts) == 4
    shown = ["sample", str(model.folder.resolve()), "--prompt", "ab", "--max-new", "5"]
    options = ["--beams", "3", "--num-return-sequences", "2", "--length-penalty", "0.5"]
    assert main.main([*shown, *options]) == 0
    lines = [f"\n  {one.score:.4f}  {one.text!r}" for one in found[0]]
    assert capsys.readouterr().out == "ab" + "".join(lines) + "\n"
    (text,) = jaxlm.generate(model, ["ab"], jaxlm.Contrastive(max_new=5, top_k=3))
    assert main.main([*shown, "--penalty-alpha", "0.6", "--top-k", "3"]) == 0
    assert capsys.readouterr().out == f"ab{text}\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--length-penalty 2", "length_penalty: 2.0 given; it must be 1.0 without --beams"),
        (
            "--beams 2 --temperature 0",
            "sampling.temperature: 0.0 given; it must be 1.0 with --beams",
        ),
        ("--beams 2 --stop-strings a", "sampling.stop_strings: .* with --beams"),
        ("--beams 2 --top-k 3", "sampling.top_k: 3 given"),
        ("--penalty-alpha 0.5 --top-p 0.5", "sampling.top_p: 0.5 given; .* with --penalty-alpha"),
        ("--beams 2 --penalty-alpha 0.5", "--penalty-alpha: contrastive search has no beams"),
        ("--beams 0", "beams.num_beams: 0 given"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message, saved, capsys):
    folder = str(saved[1].folder.resolve())
    assert main.main(["sample", folder, *options.split()]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_what_is_kept_of_a_run_is_read_by_a_path_as_text(saved):
    """Checkpoints took pathlib alone, where runs took text."""
    folder, kept = "runs/first", "runs/first/checkpoints"
    assert checkpoint.steps(kept) == [2] == [checkpoint.good(kept, print, [2])]
    assert integrity.fault(f"{kept}/2") is None
    assert checkpoint.facts(kept, 2) == integrity.facts(f"{kept}/2") == directory.proof(folder)
    assert directory.check(folder, saved[1].run) is None
    assert pretrained.was(folder) is None and trained_weights.begun(folder) == {}


def test_importing_loads_nothing_slow():
    code = "import sys, jaxlm; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.returncode == 0 and "jaxlm" in loaded.stdout.split()
    assert not {"jax", "numpy", "optax", "tyro", "orbax"} & set(loaded.stdout.split())
