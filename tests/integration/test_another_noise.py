"""One noise distribution for the same texts, unless their owner says otherwise; and one draw, however they are used."""

import pytest

from privtune.device.account.ledger import outcomes, spent
from privtune.device.data.source import DataSource
from privtune.device.home.run_request import RunRequest
from privtune.device.inference.evaluate import evaluate
from privtune.device.inference.generate import generate_texts, open_writer
from privtune.device.inference.generation.sampling import Sampling
from privtune.device.inference.predict import predict
from privtune.shared.errors import PolicyRefused
from tests.support.owner import TINY, job_id_of
from tests.support.running import cost, ledger_entries, train
from tests.support.texts import write_sentences
from tests.support.world import ProcessCloud, build_world
from tests.support.writing import PROMPTS, tune

OTHER = {"name": "dchi", "params": {"noise_ratio": 12.0}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("noises"), ProcessCloud)
    yield built
    built.cloud.stop()


def test_another_noise_is_drawn_at_the_owners_word_alone_and_is_charged(world, owner):
    command = ["finetune", "--model", "enc", "--data", world.data.path, "--mechanism", "dchi", *TINY]
    first = owner(*command)
    assert first.code == 0, first.err
    spent_first = cost(world)
    refused = owner(*command, "--param", "noise_ratio=6.000001")
    assert refused.code == PolicyRefused.exit_code
    assert "another noise distribution than in job" in refused.err
    assert "(dchi noise_ratio 6.000001 instead of 6.0)" in refused.err
    assert "submitted" not in refused.out
    assert cost(world) == spent_first, "nothing was drawn"
    second = owner(*command, "--param", "noise_ratio=6.000001", "--another-noise")
    assert second.code == 0, second.err
    assert cost(world).noises == 2
    assert cost(world).nats > 1.9 * spent_first.nats
    assert RunRequest.load(owner.home, job_id_of(second)).another_noise, "a resumed job needs no second word"
    asked = ["--text", "w5 w6 w7"]
    assert owner("predict", job_id_of(first), *asked).code == 0
    again = owner("predict", job_id_of(second), *asked)
    assert again.code == PolicyRefused.exit_code
    assert "--another-noise" in again.line
    assert owner("predict", job_id_of(second), "--text", "w5 w6 w8").code == 0, "another text"
    assert owner("predict", job_id_of(second), *asked, "--another-noise").code == 0


@pytest.mark.slow
def test_what_uses_a_model_keeps_to_one_noise_as_well(local_world):
    world = local_world
    one = train(world, world.spec(mechanism={"name": "dchi"}))
    two = train(world, world.spec(mechanism=OTHER))
    held_out = DataSource(path=str(write_sentences(world.folder / "held-out.tsv", 10, seed=5)))
    strict = world.device(another_noise=False)
    evaluate(one, held_out, strict)
    with pytest.raises(PolicyRefused, match="another noise distribution"):
        evaluate(two, held_out, strict)
    with pytest.raises(PolicyRefused, match="another noise distribution"):
        predict(two, ["w1"], strict, source=held_out.path)
    evaluate(one, held_out, strict)
    predict(two, [record.text for record in world.data.load("classification")][:5], strict, source=world.data.path)
    written = [tune(world, mechanism=mechanism, cut=2) for mechanism in ({"name": "dchi"}, OTHER)]
    short = Sampling(max_new_tokens=2)
    generate_texts(written[0], ["w9 w9 w9"], strict, sampling=short)
    with pytest.raises(PolicyRefused, match="another noise distribution"):
        generate_texts(written[1], ["w9 w9 w9"], strict, sampling=short)
    generate_texts(written[1], ["w9 w9 w8"], strict, sampling=short)


def test_a_text_that_was_trained_on_is_not_drawn_again_when_it_is_asked_about(local_world):
    world = local_world
    job_id = train(world, world.spec(mechanism={"name": "dchi"}, train={"epochs": 1, "max_steps": None}))
    texts = [record.text for record in world.data.load("classification")]
    predict(job_id, texts[:7], world.settings)
    assert spent(ledger_entries(world), "predictions").releases == 0
    evaluate(job_id, world.data, world.settings)
    assert cost(world).releases == 160


@pytest.mark.parametrize("injection", ["cut", "embedding"])
def test_a_prompt_that_was_trained_on_is_not_drawn_again(local_world, injection):
    world = local_world
    mechanism = {"name": "shared", "params": {"injection": injection, "target": "centre"}}
    job_id = tune(world, mechanism=mechanism, train={"epochs": 1, "max_steps": None})
    with open_writer(job_id, world.settings) as writer:
        beginning = writer.prompts.asked(PROMPTS[0]).ids[:-1]  # the tiny tokenizer closes every text
    generate_texts(job_id, [beginning], world.settings, sampling=Sampling(max_new_tokens=5, ignore_end=True))
    (entry,) = (row for row in outcomes(ledger_entries(world)) if row["source"] == "generations")
    assert entry["rows"] <= 4, "rows of the answer alone"
