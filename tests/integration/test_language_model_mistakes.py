"""What can be wrong with a language model's job and its use, reported at the command line in one line.

No chat template: `test_evaluate_command.py`. A prompt over the context at `generate`: `test_generate_command.py`.
"""

import json
import shutil

import pytest

from tests.support.chats import byte_tokenizer
from tests.support.owner import TINY, Owner, job_id_of
from tests.support.tiny_models import save_model, tiny_lm
from tests.support.world import ProcessCloud, build_world

pytestmark = pytest.mark.timeout(300)
PAIRS = [{"prompt": f"w{n}", "completion": f"w{n + 1} w{n + 2}"} for n in range(40)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    built = build_world(tmp_path_factory.mktemp("mistakes"), ProcessCloud)
    yield built
    built.cloud.stop()


def written(world, name, rows):
    file = world.folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def finetune(owner, file, *more):
    options = ("--task", "causal-lm", "--model", "dec", "--protect", "none", *TINY)
    return owner("finetune", "--data", file, *options, *more)


def told(done, code, words):
    """The last line: lines about progress may come before it."""
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("privtune: ")
    assert words in last


@pytest.mark.parametrize("empty", ["", "  \n", None])
def test_an_empty_completion_makes_no_job(owner, empty):
    before = owner.jobs()
    file = written(owner.world, "empty.jsonl", [*PAIRS[:2], {"prompt": "w1", "completion": empty}])
    done = finetune(owner, file)
    told(done, 3, 'empty.jsonl, line 3, column "completion": the ')
    assert "Remove the record or fill it in." in done.err
    assert owner.jobs() == before


def test_an_empty_answer_in_a_conversation_makes_no_job(owner):
    before = owner.jobs()
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": " "}]
    done = finetune(owner, written(owner.world, "chat.jsonl", [{"messages": turns}]))
    told(done, 3, "chat.jsonl, line 1")
    assert "is empty" in done.err
    assert owner.jobs() == before


def test_prompts_that_leave_no_room_for_a_completion(owner):
    long = {"prompt": "w1 " * 40, "completion": "w2"}
    done = finetune(owner, written(owner.world, "mixed.jsonl", [*PAIRS, long]))  # --max-length 16
    assert done.code == 0, done.err
    assert "1 left out" in done.out
    told(finetune(owner, written(owner.world, "long.jsonl", [long])), 3, "no record has anything left to predict")


def test_evaluation_leaves_out_prompts_over_the_context(owner):
    job_id = job_id_of(finetune(owner, written(owner.world, "pairs.jsonl", PAIRS)))
    over = {"prompt": "w1 " * 60, "completion": "w2"}  # of 48 positions
    options = ("--generate", "9", "--max-new-tokens", "2")
    file = written(owner.world, "some.jsonl", [PAIRS[0], over])
    done = owner("evaluate", job_id, "--data", file, *options, "--json")
    assert done.code == 0, done.err
    assert (json.loads(done.out)["prompts"], json.loads(done.out)["prompts_too_long"]) == (1, 1)


def test_a_tokenizer_of_another_model_is_refused_before_anything_leaves(owner):
    mixed = owner.world.folder / "mixed"
    tiny_lm("llama").save_pretrained(mixed)
    byte_tokenizer().save_pretrained(mixed)
    pairs = written(owner.world, "pairs.jsonl", PAIRS)
    before = set(owner.jobs())
    other = [{"prompt": "zebra", "completion": "zebra"}] * 4
    told(
        finetune(owner, written(owner.world, "zebra.jsonl", other), "--local-model", str(mixed)),
        4,
        "do not belong together",
    )
    (failed,) = set(owner.jobs()) - before
    assert owner.world.cloud.status(failed)[0] == "failed"
    job_id = job_id_of(finetune(owner, pairs))
    told(owner("generate", job_id, "--prompt", "zebra", "--local-model", str(mixed)), 4, "do not belong together")


def test_an_adapter_of_another_base(owner):
    world = owner.world
    job_id = job_id_of(finetune(owner, written(world, "pairs.jsonl", PAIRS), "--suffix", "base"))
    other = save_model(world.folder / "other", "llama", "causal-lm", seed=9)
    out = world.folder / "merged"
    done = owner("export", job_id, str(out), "--format", "merged", "--local-model", str(other))
    told(done, 9, "not the adapter's base")
    assert not out.exists()
    # The operator puts other weights under the name: what was tuned is not used with them.
    copy = shutil.copytree(world.models["dec"], world.folder / "copy")
    save_model(world.models["dec"], "llama", "causal-lm", seed=9)
    world.cloud.stop()
    world.cloud = ProcessCloud(world.folder / "cloud", world.models)
    again = Owner(world=world, capsys=owner.capsys)
    done = again("generate", job_id, "--prompt", "w1")
    assert "not the one that this device first got" in done.err
    assert done.code == 6
    done = again("generate", job_id, "--prompt", "w1", "--local-model", str(copy))
    told(done, 9, "was trained on other weights than this cloud now serves")
