"""The roofline's work against sums by hand, and its time against its parts."""

import dataclasses

import pytest

from jaxlm import models
from jaxlm.core import param
from jaxlm.models import llama, mistral
from jaxlm.parallel.plan import Plan
from jaxlm.parallel.topology import CHIPS
from jaxlm.scaling.cost import flops, roofline

CFG = llama.Config(vocab=512, embed=256, layers=3, heads=2, kv=1, head=128, ffn=1024)
SEQ, BATCH = 64, 8
MIXTURE = mistral.Config(
    vocab=512, embed=256, layers=3, heads=2, kv=1, head=128, ffn=1024, experts=4, active=2
)


def work(cfg=CFG, plan=Plan(), mxu=128, again=frozenset()):
    return roofline.work(cfg, plan, batch=BATCH, seq=SEQ, mxu=mxu, again=again)


@pytest.mark.parametrize("cfg", [CFG, MIXTURE])
def test_products_are_those_of_the_spec(cfg):
    """Three passes of all matrices; all but the last are computed a fourth time under full remat,
    which the FLOPs of a model's utilisation do not count."""
    each = flops.per_token(cfg, SEQ)
    tokens = BATCH * SEQ
    assert work(cfg).products == pytest.approx(3 * (each.layers + each.head) * tokens)
    down = 3 * 2 * 256 * 1024 * (1 if cfg is CFG else 2)
    again = work(cfg, again=None).products - work(cfg).products
    assert again == pytest.approx((each.layers - down) * tokens)


def test_scores_fill_a_part_of_the_matrix_unit():
    """Forward 2 products, backward 7; a head of 128 fills half of a unit of 256."""
    each = flops.per_token(CFG, SEQ).attention * BATCH * SEQ
    assert work().scores == pytest.approx(4.5 * each)
    assert work(again=frozenset({"scores"})).scores == pytest.approx(5.5 * each)
    assert work(mxu=256).scores == pytest.approx(2 * 4.5 * each)


def test_every_axis_divides_the_work():
    undivided = work()
    for plan in (Plan(fsdp=4), Plan(data=2, tensor=2), Plan(context=4)):
        assert work(plan=plan).products == pytest.approx(undivided.products / 4)
    # two mesh axes, in one slice and in two
    for plan in (Plan(fsdp=64), Plan(data=2, fsdp=64, slices=2)):
        assert work(plan=plan).products == pytest.approx(undivided.products / plan.devices)


def test_links_carry_the_least_of_a_layout():
    count = param.count(models.spec(CFG))
    assert roofline.links(CFG, Plan(), BATCH, SEQ) == {}
    assert roofline.links(CFG, Plan(fsdp=4), BATCH, SEQ) == {"fsdp": 6 * count * 3 / 4}
    wide = roofline.links(CFG, Plan(fsdp=4, reduce="float32"), BATCH, SEQ)
    assert wide == {"fsdp": (2 + 2 + 4) * count * 3 / 4}
    twice = roofline.links(CFG, Plan(fsdp=4, microbatches=2), BATCH, SEQ)
    assert twice == {"fsdp": 12 * count * 3 / 4}
    both = roofline.links(CFG, Plan(data=2, fsdp=4), BATCH, SEQ)
    assert both["data"] == 2 * 4 * count / 4 / 2
    # keys and values of a row's other parts, forward and twice backward, in bfloat16
    ring = roofline.links(CFG, Plan(context=4), BATCH, SEQ)
    assert ring["context"] == 3 * 3 * 2 * (2 * 128) * (BATCH * SEQ / 4) * 3


def test_links_hide_until_they_bind():
    chip = CHIPS["v5e"]
    parts = roofline.seconds(work(), chip, roofline.RATES)
    assert parts.total == parts.products + parts.scores + parts.memory
    slow = roofline.seconds(work(plan=Plan(fsdp=8)), chip._replace(link=1.0), roofline.RATES, 2)
    assert slow.binds == "links" and slow.total == slow.links


@pytest.mark.parametrize("data, share", [(2, 1), (4, 1 / 3)])
def test_slices_send_over_the_network(data, share):
    """A ring of four devices in two slices has one of its three hops between them; what goes over
    the network hides under nothing, and binds where it takes the longest."""
    sizes = {"batch": 16, "seq": 512, "mxu": 128, "again": None}
    inside = roofline.work(CFG, Plan(data=data, fsdp=4), **sizes)
    across = roofline.work(CFG, Plan(data=data, fsdp=4, slices=2), **sizes)
    assert across.network == {"data": pytest.approx(share * inside.links["data"])}
    assert across.links["fsdp"] == inside.links["fsdp"] and not inside.network
    both = across.links.get("data", 0.0) + across.network["data"]
    assert both == pytest.approx(inside.links["data"])
    parts = roofline.seconds(across, CHIPS["v5p"], roofline.RATES)
    assert parts.network == pytest.approx(across.network["data"] / 1.3e9)
    alone = parts._replace(network=0.0)
    assert parts.total == alone.total + parts.network and alone.binds != "network"
    assert parts._replace(network=2 * alone.total).binds == "network"


def test_a_pipeline_waits_and_passes_its_parts_on():
    """4 layers in 2 stages with 4 parts wait for a fifth of all turns; of 5 layers, 4 do."""
    four, five = (dataclasses.replace(CFG, layers=n) for n in (4, 5))
    plan = Plan(pipe=2, pipe_parts=4)
    layers = flops.per_token(four, SEQ).layers
    share = layers / (layers + flops.per_token(four, SEQ).head)
    assert work(four, plan).waits == pytest.approx(share / 4)
    assert work(five, plan).waits == pytest.approx(
        4 * layers / 4 / (5 * layers / 4 + flops.per_token(four, SEQ).head) / 4
    )
    assert work(four, plan).products == pytest.approx(work(four).products / 2)
    sent = roofline.links(four, plan, BATCH, SEQ)
    assert sent == {"pipe": 5 * 2 * 2 * 256 * (BATCH * SEQ / 4)}
    parts = roofline.seconds(work(four, plan), CHIPS["v5e"], roofline.RATES)
    assert parts.bubble == pytest.approx(share / 4 * (parts.products + parts.scores + parts.memory))
    assert parts.total == pytest.approx(sum(parts) - parts.links)


def test_outputs_that_are_kept_are_not_computed_again():
    plan = Plan(remat="full", keep=("q", "attention"), offload=("layer", "up"))
    again = roofline.recomputed(CFG, plan)
    assert again == {"k", "v", "o", "gate", "scores", "router"}
    less = work(again=None).products - work(again=again).products
    assert less == pytest.approx(3 * 2 * 256 * (2 * 128 + 1024) * BATCH * SEQ)
    assert roofline.recomputed(CFG, Plan(remat="full")) is None
    assert roofline.recomputed(CFG, Plan(remat="dots")) == {"scores"}
