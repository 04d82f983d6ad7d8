"""What `import jaxlm` offers is what the modules do, and costs nothing before it is used."""

import subprocess
import sys

import pytest

import jaxlm
from jaxlm.cli import main
from jaxlm.convert import pretrained
from jaxlm.decode import completions
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
    assert main.main(["sample", folder, "--talk", "--template", "plain", *shown]) == 2
    assert "--n: 3 given; a conversation (--talk) goes on with one reply" in capsys.readouterr().err
    assert main.main(["sample", folder, "--template", "plain", "--prompt", "ab", *shown[:4]]) == 0
    assert len(capsys.readouterr().out.split("\n")) >= 5
    with pytest.raises(SystemExit, match="2"):
        main.main(["sample", folder, "--max-new", "6", "--min-new", "7"])
    assert "sampling.min_new: 7 given; it must be in [0, 6]" in capsys.readouterr().err


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
