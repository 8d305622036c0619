"""What the tests share: a tokenizer and a model made here in a moment, so that no test needs the network."""

import gc
import logging
import signal

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import graft
import http_server
from graft.serve.root import Root

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "Name the intent of this query. Where is my card? card arrival",
    "Is the review positive or negative? the review is positive",
    "user assistant system answer question number",
]


def pytest_addoption(parser):
    parser.addoption("--fused", choices=("stacked", "pitched"), help="run every adapted model fused, in this layout")


def pytest_collection_finish():
    """What is imported stays: no collection of garbage, of which each training begins with one, walks over it again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """At the end all of it goes."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="session")
def interruptible():
    """Ctrl-C is heard here and in programs that tests start, also where the tests themselves were started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="session")
def fused(request):
    """With --fused, graft.adapt fuses what it adapts: the same tests, on the fast path."""
    layout = request.config.getoption("--fused")
    if not layout:
        yield
        return
    adapt = graft.adapt

    def adapted(*args, **kwargs):
        host = adapt(*args, **kwargs)
        host.fuse(layout=layout)
        return host

    graft.adapt = adapted
    yield
    graft.adapt = adapt


@pytest.fixture
def counting():
    """(backend, graphs): a backend of torch.compile that runs graphs as they are and keeps them; the compiler starts and ends empty."""
    torch._dynamo.reset()
    logging.getLogger("torch.__trace").setLevel(logging.WARNING)  # pytest would collect every one of its lines
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    yield backend, graphs
    torch._dynamo.reset()


def byte_tokenizer(chat_template=None):
    """Byte-level BPE with a few merges: any text can be written, and tokens do span characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=chat_template,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A ChatML tokenizer of about 320 byte-level tokens."""
    return byte_tokenizer(CHATML)


@pytest.fixture
def plain_tokenizer():
    """The same without a chat template, new for every test: tests change it."""
    return byte_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama(tiny_tokenizer):
    """A random Llama of two layers, for the tiny tokenizer; leave it as you found it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=tiny_tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tiny_tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def adapters_folder(tmp_path_factory, tiny_llama):
    """A folder of adapters of the tiny Llama, of six methods."""
    return http_server.save_adapters(tmp_path_factory.mktemp("adapters"), tiny_llama)


@pytest.fixture(scope="session")
def served(adapters_folder, tiny_llama, tiny_tokenizer):
    """A server of the tiny Llama and these adapters on a real port, without keys: an http_server.Running; leave it as you found it."""
    root = Root(adapters_folder)
    with http_server.engine_for(tiny_llama, tiny_tokenizer, root) as engine, http_server.running(engine, root) as found:
        yield found
