"""Private generation against plain transformers + peft, and what happens when it is disturbed."""

import shutil

import pytest
import torch

from privtune.cloud.compute.text_cache import TextCache
from privtune.device.account.ledger import outcomes
from privtune.device.data.messages import ChatMessage
from privtune.device.home.policy import Budget, Policy
from privtune.device.inference.generate import generate_texts, open_writer
from privtune.device.inference.generation.sampling import Sampling
from privtune.device.inference.generation.writer import Writer
from privtune.shared.errors import (
    CloudUnreachable,
    InvalidInput,
    JobConflict,
    JobNotFound,
    ModelUnsupported,
    PolicyRefused,
    VersionMismatch,
)
from tests.support.chats import byte_tokenizer
from tests.support.lossy import lossy_links
from tests.support.proxy import Proxy
from tests.support.running import ledger_entries, train
from tests.support.tiny_models import DECODERS, save_model, tiny_lm
from tests.support.world import InProcessCloud, ProcessCloud, build_world
from tests.support.writing import PROMPTS, chat_world, plain_model, plain_tokens, tune, tune_chat

NEW = 30
FREELY = Sampling(max_new_tokens=NEW, ignore_end=True)


def entries(world):
    return [row for row in outcomes(ledger_entries(world)) if row["source"] == "generations"]


def write_all(writer):
    while writer.active:
        writer.advance()


@pytest.mark.parametrize("cut", [0, 2])
def test_greedy_tokens_equal_plain_transformers_and_peft(local_world, cut):
    world = local_world
    job_id = tune(world, cut=cut)
    found = generate_texts(job_id, PROMPTS, world.settings, sampling=FREELY, in_flight=2)
    short = generate_texts(job_id, PROMPTS, world.settings, sampling=Sampling(max_new_tokens=NEW))
    model = plain_model(world, job_id)
    with open_writer(job_id, world.settings) as writer:
        prompts = [writer.prompts.asked(prompt).ids for prompt in PROMPTS]
    for ids, freely, ended in zip(prompts, found, short, strict=True):
        assert freely.tokens == plain_tokens(model, ids, NEW, eos_token_id=None)
        assert ended.tokens == plain_tokens(model, ids, NEW)
        assert (freely.finish, freely.prompt_tokens) == ("length", len(ids))
    with model.disable_adapter():  # so that the adapter made a difference
        untouched = [plain_tokens(model, ids, NEW, eos_token_id=None) for ids in prompts]
    assert untouched != [answer.tokens for answer in found]


def test_log_probabilities_equal_plain_transformers_and_peft(local_world):
    world = local_world
    job_id = tune(world)
    sampling = Sampling(max_new_tokens=6, temperature=1.0, top_k=5, seed=3, ignore_end=True, alternatives=4)
    answers = generate_texts(job_id, PROMPTS, world.settings, sampling=sampling)
    model = plain_model(world, job_id)
    with open_writer(job_id, world.settings) as writer:
        prompts = [list(writer.prompts.asked(prompt).ids) for prompt in PROMPTS]
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + list(answer.tokens)])).logits[0, len(prompt) - 1 : -1]
        logprobs_TV = logits_TV.log_softmax(-1)  # the model's own: temperature and cuts do not show
        assert [odds.token for odds in answer.odds] == list(answer.tokens)
        for odds, logprobs_V in zip(answer.odds, logprobs_TV, strict=True):
            assert odds.logprob == pytest.approx(float(logprobs_V[odds.token]), abs=1e-5)
            best = logprobs_V.topk(4)
            assert [token for token, _ in odds.likeliest] == best.indices.tolist()
            assert [logprob for _, logprob in odds.likeliest] == pytest.approx(best.values.tolist(), abs=1e-5)
    with pytest.raises(InvalidInput, match="0 to 20"):
        Sampling(alternatives=21)


@pytest.mark.parametrize("kind", DECODERS)
def test_every_decoder_writes_as_in_plain_transformers(tmp_path, kind):
    """64 tokens, a trained adapter, the cut in the middle."""
    name = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    # transformers reads some families' tokenizer in their own way, with more ids than the tiny models have by default.
    folder = save_model(tmp_path / "models" / kind, kind, "causal-lm", vocab_size=512, **{name: 128})
    world = build_world(tmp_path, lambda place, models, **more: InProcessCloud(place, {**models, kind: folder}, **more))
    world.models[kind] = folder
    try:
        job_id = tune(world, model=kind, train={"max_steps": 2})
        sampling = Sampling(max_new_tokens=64, ignore_end=True)
        (found,) = generate_texts(job_id, PROMPTS[:1], world.settings, sampling=sampling)
        with open_writer(job_id, world.settings) as writer:
            ids = writer.prompts.asked(PROMPTS[0]).ids
        assert found.tokens == plain_tokens(plain_model(world, job_id, kind), ids, 64, eos_token_id=None)
    finally:
        world.cloud.stop()


def test_noise_changes_the_answer_and_asking_again_draws_nothing_anew(local_world):
    world = local_world
    job_id = tune(world, mechanism={"name": "dchi", "params": {"noise_ratio": 4}})
    first = generate_texts(job_id, PROMPTS, world.settings, sampling=FREELY)
    again = generate_texts(job_id, PROMPTS, world.settings, sampling=FREELY)
    assert [answer.tokens for answer in again] == [answer.tokens for answer in first]
    rows = [(row["records"], row["rows"]) for row in entries(world)]
    assert rows[3:] == [(0, 0)] * 3
    lengths = [answer.prompt_tokens + NEW - 1 for answer in first]
    assert sum(count for _, count in rows) <= sum(lengths)  # less the rows of beginnings that they share
    clean = tune(world)
    assert [answer.tokens for answer in generate_texts(clean, PROMPTS, world.settings, sampling=FREELY)] != [
        answer.tokens for answer in first
    ]


def test_a_connection_cut_in_the_middle_goes_on_with_the_same_tokens(local_world):
    world = local_world
    job_id = tune(world)
    calm = generate_texts(job_id, PROMPTS, world.settings, sampling=FREELY)
    told = []
    with Proxy(world.settings.grpc_address) as proxy:
        settings = world.device(grpc_address=proxy.address)
        with open_writer(job_id, settings, told.append) as writer:
            replies = [writer.begin(writer.prompts.asked(prompt), FREELY) for prompt in PROMPTS]
            for turn in range(1000):
                if turn == 20:
                    proxy.cut()
                if not writer.active:
                    break
                writer.advance()
    assert [tuple(reply.new_ids) for reply in replies] == [answer.tokens for answer in calm]
    assert any("trying again in" in line for line in told)


def test_a_cloud_that_goes_away_ends_it_with_a_clear_error(tmp_path, monkeypatch):
    for wait in ("FIRST_WAIT_S", "LONGEST_WAIT_S"):
        monkeypatch.setattr(f"privtune.device.inference.generation.writer.{wait}", 0.01)
    world = build_world(tmp_path, ProcessCloud)
    job_id = tune(world)
    with open_writer(job_id, world.settings) as writer:
        reply = writer.begin(writer.prompts.asked(PROMPTS[0]), FREELY)
        writer.advance()
        world.cloud.kill()
        with pytest.raises(CloudUnreachable, match="gateway"):
            write_all(writer)
    assert reply.finish == "cancelled"
    assert not any(row["open"] for row in entries(world))


@pytest.mark.parametrize(("rows", "sizes"), [(1024, [3]), (1, [1, 1, 1])])
def test_prompts_that_begin_together_are_one_message(local_world, monkeypatch, rows, sizes):
    sent = []

    def noted(writer, stream, replies, start):
        sent.append((len(replies), start))
        return send(writer, stream, replies, start)

    send = Writer._send
    monkeypatch.setattr(Writer, "_send", noted)
    monkeypatch.setattr("privtune.device.inference.generation.writer.ROWS_TOGETHER", rows)
    job_id = tune(local_world)
    generate_texts(job_id, PROMPTS, local_world.settings, sampling=FREELY, in_flight=3)
    assert [count for count, start in sent if start == 0] == sizes
    if len(sizes) == 1:
        assert {count for count, start in sent if start} == {3}  # and they stay together


def test_what_the_cloud_let_go_is_sent_again_and_changes_nothing(tmp_path, monkeypatch):
    kept = []

    def narrow(**settings):
        kept.append(TextCache(**settings | {"max_texts": 1}))
        return kept[-1]

    monkeypatch.setattr("privtune.cloud.compute.desk.TextCache", narrow)
    world = build_world(tmp_path)
    try:
        job_id = tune(world)
        together = generate_texts(job_id, PROMPTS, world.settings, sampling=FREELY, in_flight=3)
        alone = [generate_texts(job_id, [prompt], world.settings, sampling=FREELY)[0] for prompt in PROMPTS]
        assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    finally:
        world.cloud.stop()
    assert len(kept[-1]) == 0


def test_the_cloud_lets_go_of_ended_and_broken_texts(tmp_path, monkeypatch):
    kept = []

    def watched(**settings):
        kept.append(TextCache(**settings))
        return kept[-1]

    monkeypatch.setattr("privtune.cloud.compute.desk.TextCache", watched)
    world = build_world(tmp_path)
    try:
        job_id = tune(world)
        with open_writer(job_id, world.settings) as writer:
            first, second = (writer.begin(writer.prompts.asked(prompt), FREELY) for prompt in PROMPTS[:2])
            for _ in range(6):
                writer.advance()
            assert len(kept[-1]) == 2
            writer.end(first, "cancelled")
            write_all(writer)
        assert len(first.new_ids) < NEW == len(second.new_ids)
        assert not any(hasattr(reply, "growing") for reply in (first, second))  # its rows are let go here too
        assert (len(kept[-1]), kept[-1].size) == (0, 0)
    finally:
        world.cloud.stop()


def test_a_budget_is_kept_before_anything_of_a_text_is_sent(local_world, monkeypatch):
    world = local_world
    job_id = tune(world)
    settings = world.device(policy=Policy(protections=("none",), budget=Budget(releases=2)))
    generate_texts(job_id, PROMPTS[:2], settings, sampling=FREELY)
    calls = lossy_links(monkeypatch, "none").calls
    careful = world.device(policy=settings.policy, local_model=str(world.models["dec"]))
    with pytest.raises(PolicyRefused, match="0 left"):
        generate_texts(job_id, PROMPTS[2:], careful, sampling=FREELY)
    assert set(calls) == {"Claim"}  # that a run begins in this home; no session is opened


def test_jobs_that_can_not_write_are_refused(local_world):
    world = local_world
    with pytest.raises(JobNotFound):
        generate_texts("ftjob-unknown", ["w1"], world.settings)
    classifier = train(world, world.spec(train={"max_steps": 2}))
    with pytest.raises(InvalidInput, match="privtune predict"):
        generate_texts(classifier, ["w1"], world.settings)
    job_id = tune(world, train={"max_steps": 2})
    talk = [ChatMessage("user", "w1")]
    with pytest.raises(InvalidInput, match="not trained on conversations"):
        generate_texts(job_id, [talk], world.settings)
    with pytest.raises(InvalidInput, match="at most 48; shorten"):
        generate_texts(job_id, ["w1 " * 60], world.settings)


def test_a_tokenizer_of_another_model_is_refused(local_world, tmp_path):
    world = local_world
    job_id = tune(world, train={"max_steps": 2})
    mixed = tmp_path / "mixed"
    tiny_lm("llama").save_pretrained(mixed)
    byte_tokenizer().save_pretrained(mixed)
    with pytest.raises(ModelUnsupported, match="do not belong together"):
        generate_texts(job_id, ["zebra"], world.device(local_model=str(mixed)))


def test_a_base_with_other_weights_in_the_cloud_is_refused(tmp_path):
    world = build_world(tmp_path)
    job_id = tune(world, train={"max_steps": 2})
    port = int(world.cloud.grpc_address.rpartition(":")[2])
    world.cloud.stop()
    copy = shutil.copytree(world.models["dec"], tmp_path / "copy")
    save_model(world.models["dec"], "llama", "causal-lm", seed=9)
    world.cloud = InProcessCloud(world.folder / "cloud", world.models, grpc_port=port)
    try:
        with pytest.raises(VersionMismatch, match="trained on other weights"):
            generate_texts(job_id, ["w1"], world.device(local_model=str(copy)))
        with pytest.raises(JobConflict, match="not the one that this device first got"):
            generate_texts(job_id, ["w1"], world.settings)
    finally:
        world.cloud.stop()


def test_a_conversation_ends_where_its_template_closes_the_turn(tmp_path):
    world = chat_world(tmp_path, InProcessCloud)
    try:
        job_id = tune_chat(world)
        with open_writer(job_id, world.settings) as writer:
            tokenizer = writer.package.tokenizer
            closing = tokenizer.convert_tokens_to_ids("<|im_end|>")
            assert closing in writer.prompts.end_ids()
            assert tokenizer.eos_token_id in writer.prompts.end_ids()
            asked = writer.prompts.asked([ChatMessage("user", "hi")]).ids
            assert tokenizer.decode(asked).endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
            assert writer.prompts.asked("hi").ids == asked
            assert writer.prompts.asked("hi", raw=True).ids != asked
    finally:
        world.cloud.stop()
