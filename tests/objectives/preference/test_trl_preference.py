"""DPO's losses, live, against TRL 1.16's trainers over one tiny LLaMA.

    make parity

TRL tokenises the text, adds the end, pads and computes its loss; ours reads the same tokens.
"""

import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import models
from jaxlm.convert import read
from jaxlm.core.batch import Choices
from jaxlm.data.records import preferences
from jaxlm.objectives.preference import dpo, responses
from jaxlm.parallel.plan import Plan

pytestmark = [pytest.mark.parity, pytest.mark.xdist_group("trl preference")]

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
ROWS = [
    {"prompt": "w1 w2 w3", "chosen": " w4 w5", "rejected": " w6"},
    {"prompt": "w7 w2", "chosen": " w4 w6", "rejected": " w6 w8 w9 w10"},
    {"prompt": "w11", "chosen": " w12 w13", "rejected": " w12 w15 w14"},
]
# of ours: TRL's loss_type and settings
VARIANTS = {
    "dpo": (["sigmoid"], {}),
    "dpo_mean": (["sigmoid_norm"], {}),
    "robust": (["robust"], {"label_smoothing": 0.1}),
    "hinge": (["hinge"], {}),
    "ipo_mean": (["ipo"], {}),
    "exo": (["exo_pair"], {"label_smoothing": 0.1}),
    "discopop": (["discopop"], {}),
    "nca": (["nca_pair"], {}),
    "bco": (["bco_pair"], {}),
    "sppo": (["sppo_hard"], {}),
    "apo_zero": (["apo_zero"], {}),
    "apo_down": (["apo_down"], {}),
    "aot": (["aot"], {}),
    "aot_unpaired": (["aot_unpaired"], {}),
}
DIVERGENCES = {"forward_kl": "forward_kl", "js": "js_divergence", "alpha": "alpha_divergence"}


class Trained(tuple):
    """Compared by identity, so that what is computed of it can be kept."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


@pytest.fixture(scope="module")
def trained():
    """(TRL's DPOTrainer, its batch, its policy's and its reference's weights, our Model)."""
    datasets = pytest.importorskip("datasets")
    import tokenizers
    import torch
    import transformers

    trl = pytest.importorskip("trl", minversion="1.16")
    words = {f"w{i}": i for i in range(30)} | {"<pad>": 30, "<eos>": 31}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>"
    )
    config = transformers.AutoConfig.for_model("llama", **SIZES)
    both, weights = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for seed in (0, 1):
            torch.manual_seed(seed)
            model = transformers.LlamaForCausalLM(config)
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn_like(p) * 0.15)
            model.save_pretrained(folder / str(seed))
            cfg, params = read.load(folder / str(seed))
            both.append(model.eval())
            weights.append(jax.tree.map(jnp.asarray, params))
        args = trl.DPOConfig(
            output_dir=str(folder / "out"), use_cpu=True, report_to="none", bf16=False,
            max_length=None, gradient_checkpointing=False, disable_tqdm=True,
        )  # fmt: skip
        trainer = trl.DPOTrainer(
            *both, args, train_dataset=datasets.Dataset.from_list(ROWS), processing_class=tokenizer
        )
        trainer.model.eval()
        rows = list(trainer.train_dataset)
        yield Trained((trainer, rows, weights, models.build(cfg)))


def choices(rows) -> Choices:
    """Our batch of TRL's tokens."""
    examples = []
    for row in rows:
        start = len(row["prompt_ids"])
        whole = [np.array(row["prompt_ids"] + row[f"{x}_ids"]) for x in ("chosen", "rejected")]
        texts = tuple(preferences.Text(ids, np.arange(len(ids)) >= start, start) for ids in whole)
        examples.append(preferences.Example(texts, (0, 1), 1.0, ()))
    return preferences.choices(examples, 2, 12)


def configs():
    """Everything that is compared."""
    yield from (dpo.Config(loss=name) for name in VARIANTS)
    yield from (dpo.Config(beta=0.3, divergence=name) for name in DIVERGENCES)
    yield from (dpo.Config(beta=0.5), dpo.Config(loss="rpo", nll=0.7))


@functools.cache
def all_ours(trained):
    """{Config: (mean loss, its gradient in the embedding table, sums / weight)}, in one program:
    each loss' own slopes in what is read of the batch, all pulled back through the model."""
    _, rows, (policy, held), model = trained
    batch, cfgs = choices(rows), list(configs())

    def run(policy, held):
        reference = responses.summed(model, held, batch, Plan())

        def read(params):
            reading = responses.read(model, params, batch, reference, Plan())
            return reading.responses, reading

        policy_responses, pull, reading = jax.vjp(read, policy, has_aux=True)
        out, slopes = [], []
        for cfg in cfgs:

            def mean(policy_responses, cfg=cfg):
                settings = {name: getattr(cfg, name) for name in dpo._settings(cfg.loss)}
                given = reading._replace(responses=policy_responses)
                total, weight, sums = dpo._paired(cfg, settings, given, batch)
                return total / weight, jax.tree.map(lambda x: x / weight, sums)

            (value, sums), slope = jax.value_and_grad(mean, has_aux=True)(policy_responses)
            out.append((value, sums))
            slopes.append(slope)
        pulled = jax.vmap(pull)(jax.tree.map(lambda *x: jnp.stack(x), *slopes))[0]
        return out, pulled["embed"]["table"]

    out, tables = jax.tree.map(np.asarray, jax.jit(run)(policy, held))
    return {cfg: (*one, table) for cfg, one, table in zip(cfgs, out, tables, strict=True)}


def ours(trained, cfg):
    """(mean loss, its gradient in the embedding table, sums / weight)."""
    value, sums, table = all_ours(trained)[cfg]
    return float(value), table, sums


@functools.cache
def whole(trained):
    """The loss and gradient of plain DPO, through the objective as a step takes it."""
    _, rows, (policy, held), model = trained
    objective, batch = dpo.build(dpo.Config(beta=0.5), model), choices(rows)

    def mean(params):
        total, weight, _ = objective.loss(params, {"reference": held}, batch, None)
        return total / weight

    value, slopes = jax.jit(jax.value_and_grad(mean))(policy)
    return float(value), np.asarray(slopes["embed"]["table"])


def theirs(trained, losses, beta=0.1, divergence="reverse_kl", weights=None, **settings):
    """The same of TRL."""
    trainer, rows, _, _ = trained
    trainer.loss_types, trainer.loss_weights = losses, weights or [1.0] * len(losses)
    trainer.beta, trainer.f_divergence_type = beta, divergence
    trainer.label_smoothing = settings.get("label_smoothing", 0.0)
    trainer._metrics["eval"].clear()
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, trainer.data_collator(rows), False)
    loss.backward()
    metrics = {name: values[0] for name, values in trainer._metrics["eval"].items()}
    slopes = trainer.model.model.embed_tokens.weight.grad.numpy().copy()
    return float(loss), slopes, metrics


def agree(trained, cfg, *given, **settings):
    value, slopes, metrics = ours(trained, cfg)
    right, right_slopes, right_metrics = theirs(trained, *given, **settings)
    assert value == pytest.approx(right, rel=1e-5)
    near = 1e-5 * np.abs(right_slopes).max() + 1e-8
    np.testing.assert_allclose(slopes, right_slopes, rtol=1e-4, atol=near)
    return metrics, right_metrics


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradient_are_those_of_trl(trained, name):
    losses, settings = VARIANTS[name]
    agree(trained, dpo.Config(loss=name), losses, **settings)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergences_are_those_of_trl(trained, name):
    cfg = dpo.Config(beta=0.3, divergence=name)
    agree(trained, cfg, ["sigmoid"], beta=0.3, divergence=DIVERGENCES[name])


def test_what_is_reported_is_what_trl_reports(trained):
    metrics, right = agree(trained, dpo.Config(beta=0.5), ["sigmoid"], beta=0.5)
    names = {
        "reward_chosen": "rewards/chosen", "reward_rejected": "rewards/rejected",
        "margin": "rewards/margins", "accuracy": "rewards/accuracies",
        "log_prob_chosen": "logps/chosen", "log_prob_rejected": "logps/rejected",
    }  # fmt: skip
    value, slopes = whole(trained)
    again, table, _ = ours(trained, dpo.Config(beta=0.5))
    assert value == pytest.approx(again, rel=1e-6)
    np.testing.assert_allclose(slopes, table, rtol=1e-4, atol=1e-6)
    for name, their in names.items():
        assert float(metrics[name]) == pytest.approx(right[their], rel=1e-4, abs=1e-5), name


def test_rpo_is_dpo_and_sft(trained):
    """TRL averages over the chosen tokens of the batch, we over each response's and then over
    responses: with responses of one length, these are one."""
    cfg = dpo.Config(loss="rpo", nll=0.7)
    agree(trained, cfg, ["sigmoid", "sft"], weights=[1.0, 0.7])
