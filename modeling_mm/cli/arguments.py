# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Arguments and help of each subcommand. Importing this costs nothing, so that help is fast."""

from typing import Any

from ..modalities import MODALITIES, VIDEO

Argument = tuple[tuple[str, ...], dict[str, Any]]


class Command:
    """
    A subcommand: its summary, the extra that it needs, examples, and arguments as `add_argument` takes them.

    One with `actions` has subcommands instead of arguments.
    """

    def __init__(
        self,
        summary: str,
        extra: str,
        examples: tuple[str, ...],
        *arguments: Argument,
        actions: "dict[str, Command] | None" = None,
    ):
        self.summary, self.extra, self.examples, self.arguments = summary, extra, examples, arguments
        self.actions = actions or {}


def arg(*names: str, **settings: Any) -> Argument:
    """Return the arguments of `add_argument`."""
    return names, settings


def file_arg(modality: str) -> Argument:
    """Return an option that takes a file and may be repeated."""
    note = f"{modality} file that the question is about; repeat it for several"
    return arg(f"--{modality}", action="append", default=[], metavar="FILE", help=note)


MODEL = arg("model", metavar="MODEL", help="folder or Hub id of a joint model")
DEVICE = arg("--device", help="such as cpu or cuda:0 (default: a GPU if there is one)")
# The names in `modeling_mm.explain.METHODS`, which needs torch.
EXPLAIN = ("attention", "gradient-attention", "integrated-gradients", "occlusion")
DECODING = ("text", "image", "hearing", "speech", "questions", "media")
TRAINING = ("loss", "training", "cached", "mixed", "packed")
BENCHMARKS = (*DECODING, *TRAINING, "processor", "pretraining", "export", "import", "load", "convert")
# Formats of what is drawn and said, by the suffixes of files.
IMAGE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3")
DTYPES = ["auto", "float32", "bfloat16", "float16"]
DTYPE = arg("--dtype", choices=DTYPES, help="of the weights (default: the checkpoint's on a GPU, float32 on a CPU)")
STUDIO = arg("--model", default="model_cards/mm-studio", help="folder or Hub id of a model (default: %(default)s)")
SEED = arg("--seed", type=int, metavar="N", help="of random numbers, to get the same again")
OVERRIDES = arg("overrides", nargs="*", metavar="key=value", help="values in YAML that replace those of the recipe")
RECIPE = arg("recipe", metavar="RECIPE", help="a YAML file, or the name of a packaged recipe; see `modeling-mm info`")
INDEX = arg("index", metavar="INDEX", help="folder of an index")
TOP = arg("--top", type=int, default=10, metavar="N", help="rows to show (default: %(default)s)")
WHERE_HELP = "condition on a column, such as 'year >= 2000' or 'color in red, green'; repeat it for several"
WHERE = arg("--where", action="append", default=[], metavar="CONDITION", help=WHERE_HELP)
SHOWN = (
    TOP,
    WHERE,
    arg("--json", action="store_true", help="print a JSON object for each row"),
    arg("--page", metavar="HTML", help="write the rows with their images and audio into this file"),
)


def query_arg(modality: str) -> Argument:
    """Return an option that takes a file to search by."""
    return arg(f"--{modality}", metavar="FILE", help=f"search by this {modality} file")


INDEX_ACTIONS = {
    "build": Command(
        "embed the files of a folder, or the rows of a dataset, into an index; run again it resumes or updates",
        "train",
        (
            "photos --model MODEL --out my-index",
            "products.jsonl --model MODEL --out my-index --store exact",
            "photos --model MODEL --out my-index --store http://localhost:19530    # a Milvus server",
        ),
        arg("source", metavar="SOURCE", help="a folder of images, audio and .txt files; a .jsonl file; a dataset"),
        arg("--model", required=True, metavar="MODEL", help="folder or Hub id of an MMForRetrieval"),
        arg("--out", required=True, metavar="INDEX", help="folder of the index"),
        arg("--store", metavar="STORE", help="exact, milvus, or a Milvus server (default: milvus if it is installed)"),
        arg("--index-type", metavar="TYPE", help="of a Milvus server, such as HNSW (default: the server's)"),
        arg("--split", default="train", help="of a dataset (default: %(default)s)"),
        arg("--name", help="configuration of a dataset"),
        arg("--limit", type=int, help="number of items (default: all)"),
        arg("--batch-size", type=int, default=32, metavar="N", help="items embedded at a time (default: %(default)s)"),
        DEVICE,
    ),
    "search": Command(
        "find the rows that are most alike to a text, an image, audio, or a mix of them",
        "train",
        (
            'my-index --text "a dog at night"',
            "my-index --image dog.jpg --where 'kind = image' --top 5",
            'my-index --mixed --image shoe.jpg --text "in red"',
        ),
        INDEX,
        arg("--text", help="search by this text"),
        *map(query_arg, MODALITIES),
        arg("--mixed", action="store_true", help="search by all that is given together, as one row"),
        *SHOWN,
        arg("--model", metavar="MODEL", help="of the queries (default: the index's; it must have the same weights)"),
        DEVICE,
    ),
    "recommend": Command(
        "find rows that are alike to some rows of an index and unlike others",
        "train",
        ("my-index --like a.jpg --like b.jpg --unlike c.jpg",),
        INDEX,
        arg("--like", action="append", default=[], metavar="ID", help="id of a row; repeat it for several"),
        arg("--unlike", action="append", default=[], metavar="ID", help="id of a row; repeat it for several"),
        *SHOWN,
    ),
    "delete": Command(
        "delete rows of an index by their ids; a build adds those again that are in its source",
        "train",
        ("my-index a.jpg b.jpg",),
        INDEX,
        arg("ids", nargs="+", metavar="ID", help="id of a row"),
    ),
}

COMMANDS = {
    "ask": Command(
        "answer a question about images and audio, or all questions of a file, or compare a row with others",
        "train",
        (
            'MODEL --image cat.png --audio hello.wav "What is this?"',
            'MODEL --image cat.png "What is this?" --attention looked.png',
            'MODEL --image cat.png "What is this?" --attention looked.html --explain occlusion',
            'MODEL --video clip.mp4 "What moves?"',
            "MODEL --questions chats.jsonl --limit 20",
            'RETRIEVER --image cat.png --match "a cat" --match dog.png --attention match.html --explain occlusion',
        ),
        MODEL,
        arg("question", nargs="?", help="text of the question, or of a row to compare"),
        *map(file_arg, (*MODALITIES, VIDEO)),
        arg("--questions", metavar="JSONL", help="chats to answer, shown beside their truth"),
        arg("--limit", type=int, help="number of questions of the file (default: all)"),
        arg(
            "--match",
            action="append",
            default=[],
            metavar="TEXT|FILE",
            help="what a model that embeds compares the text and files with; repeat it for several",
        ),
        arg("--attention", metavar="FILE", help="draw the places that each word came from: .png, or .html for a page"),
        arg(
            "--explain",
            choices=EXPLAIN,
            metavar="METHOD",
            help=f"of --attention: {', '.join(EXPLAIN)} (default: the first, of --match the last)",
        ),
        arg("--max-new-tokens", type=int, default=64, metavar="N", help="(default: %(default)s)"),
        DEVICE,
        DTYPE,
    ),
    "draw": Command(
        "draw images of a text, or after an image, by a model with an image codec",
        "train",
        (
            '"a red apple" --out apple.png',
            '"a green apple" --like apple.png --guidance-scale 3 --out green.png --model MODEL',
            '"a cat" --count 9 --seed 0 --out cats.png    # one sheet of nine',
            '"a cat" --count 9 --out cats    # a folder with nine files',
        ),
        arg("text", metavar="TEXT", help="what to draw"),
        arg("--out", required=True, metavar="FILE", help=f"{', '.join(IMAGE_FORMATS)}, or a folder without a suffix"),
        STUDIO,
        arg("--like", metavar="FILE", help="image to draw after, for a model that sees images"),
        arg("--guidance-scale", type=float, metavar="X", help="above 1: more as the text says (default: the model's)"),
        arg("--count", type=int, default=1, metavar="N", help="number of images (default: %(default)s)"),
        SEED,
        DEVICE,
        DTYPE,
    ),
    "say": Command(
        "say a text, in a voice if one is given, by a model with an audio codec",
        "train",
        ('"Good morning." --out hello.wav', '"Good morning." --voice me.flac --out hello.mp3 --model MODEL'),
        arg("text", metavar="TEXT", help="what to say"),
        arg("--out", required=True, metavar="FILE", help=", ".join(AUDIO_SUFFIXES)),
        STUDIO,
        arg("--voice", metavar="FILE", help="audio of a voice to speak in, for a model that hears audio"),
        SEED,
        DEVICE,
        DTYPE,
    ),
    "find": Command(
        "find things in an image, by a model that answers with boxes",
        "train",
        (
            'scene.jpg "red apple" --out found.png',
            "scene.jpg --threshold 0.5    # all that is there",
        ),
        arg("image", metavar="FILE", help="the image"),
        arg("text", nargs="?", metavar="TEXT", help="what to find (default: all that is there)"),
        STUDIO,
        arg("--out", metavar="FILE", help=f"the image with the boxes: {', '.join(IMAGE_FORMATS)}"),
        arg("--threshold", type=float, default=0.0, metavar="X", help="lowest score shown (default: %(default)s)"),
        arg("--max-new-tokens", type=int, default=256, metavar="N", help="(default: %(default)s)"),
        DEVICE,
        DTYPE,
    ),
    "train": Command(
        "train a model by a recipe, or search its hyperparameters; the same command resumes an interrupted run",
        "train",
        (
            "tiny-sample 'data.train=[{source: my.jsonl}]' 'data.evaluation=[{source: my.jsonl}]' data.test={}",
            "my.yaml training.learning_rate=1e-3 data.train.0.limit=100",
            "my.yaml --search 20",
        ),
        RECIPE,
        OVERRIDES,
        arg("--search", type=int, metavar="N", help="search hyperparameters instead, with N trials in total"),
    ),
    "evaluate": Command(
        "measure a model on the test sets of a recipe, beside the majority's answer and answers without media; of a "
        "model that embeds, how its rows find each other; of a pre-trained one also its objectives",
        "train",
        ("my.yaml outputs/my --out outputs/evaluation", "my.yaml outputs/my --limit 200 --no-text-only"),
        RECIPE,
        MODEL,
        OVERRIDES,
        arg("--out", default="outputs/evaluation", help="folder of the figures, the answers and a page of examples"),
        arg("--examples", type=int, default=3, metavar="N", help="good and bad ones of a task (default: %(default)s)"),
        arg("--limit", type=int, help="number of questions of each file (default: all)"),
        arg("--only", nargs="*", metavar="SET", help="names of test sets (default: all)"),
        arg("--no-text-only", action="store_true", help="do not repeat the questions without their media"),
        arg("--no-cache", action="store_true", help="do not use the recipe's encoder cache"),
        DEVICE,
    ),
    "faithfulness": Command(
        "measure how faithful the methods of `ask --explain` are for a model, beside random weights",
        "train",
        ("MODEL chats.jsonl --limit 20", "MODEL chats.jsonl --methods occlusion attention --out table.md"),
        MODEL,
        arg("questions", metavar="JSONL", help="chats about images and audio, whose answers are explained"),
        arg("--limit", type=int, help="number of questions of the file (default: all)"),
        arg("--methods", nargs="+", choices=EXPLAIN, help="(default: all)"),
        arg("--points", type=int, default=10, help="steps of a curve (default: %(default)s)"),
        arg("--out", metavar="FILE", help="write the table here too"),
        DEVICE,
    ),
    "index": Command(
        "build and search an index of texts, images, audio and mixed rows by a model's embeddings",
        "index",
        tuple(f"{name} {each.examples[0]}" for name, each in INDEX_ACTIONS.items()),
        actions=INDEX_ACTIONS,
    ),
    "convert": Command(
        "make a joint model of a captioner, a SpeechEncoderDecoder or a Whisper, if both say the same",
        "train",
        ("openai/whisper-tiny.en outputs/whisper", "my-captioner outputs/captioner --overwrite"),
        arg("source", metavar="SOURCE", help="folder or Hub id of an encoder-decoder of transformers"),
        arg("folder", metavar="FOLDER", help="new folder of the model and its processor"),
        arg("--overwrite", action="store_true", help="replace a folder that holds a joint model"),
    ),
    "export": Command(
        "write ONNX graphs of a model, and a program that answers with them without torch",
        "onnx",
        (
            'MODEL exported --image cat.png "What is this?"',
            "MODEL exported --audio speech.wav --int8    # products of 8 bits",
        ),
        MODEL,
        arg("folder", metavar="FOLDER", help="new folder of the graphs"),
        arg("question", nargs="?", metavar="QUESTION", help="about the files, such as the program will get"),
        *map(file_arg, MODALITIES),
        arg("--int8", action="store_true", help="products of 8 bits: smaller and quicker, and not quite the same"),
        arg("--overwrite", action="store_true", help="replace a folder that holds such graphs"),
        arg("--max-new-tokens", type=int, default=48, metavar="N", help="that are compared (default: %(default)s)"),
    ),
    "serve": Command(
        "serve a model to OpenAI's clients: chat completions with images and audio, and transcriptions",
        "serve",
        ("MODEL", "MODEL --port 9000 --allow-files images    # requests may name files of this folder"),
        MODEL,
        arg("--host", default="localhost", help="address to listen on (default: %(default)s)"),
        arg("--port", type=int, default=8000, help="(default: %(default)s)"),
        arg("--device", default="auto", help="auto, cpu, cuda:0, ... (default: %(default)s)"),
        DTYPE,
        arg("--attn", help="attention implementation, such as sdpa"),
        arg("--max-tokens", type=int, metavar="N", help="limit of a request (default: the model's positions)"),
        arg("--max-audio-seconds", type=float, default=600.0, help="limit of a request (default: %(default)g)"),
        arg("--max-requests", type=int, default=256, metavar="N", help="at once; more get 429 (default: %(default)s)"),
        arg("--cors", action="store_true", help="accept requests of pages of any origin"),
        arg("--allow-private-urls", action="store_true", help="URLs may lead to private addresses"),
        arg("--allow-files", metavar="FOLDER", help="requests may name files of this folder"),
        arg("--log-level", default="warning", help="(default: %(default)s)"),
    ),
    "app": Command(
        "open a web page to chat with a model about images and audio, and to search an index",
        "app",
        (
            "MODEL",
            "MODEL --index my-index    # a second tab searches it",
            "MODEL --port 9000 --host 0.0.0.0    # for other machines, too",
        ),
        MODEL,
        arg("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"),
        arg("--port", type=int, default=7860, help="(default: %(default)s)"),
        DEVICE,
        arg("--index", metavar="INDEX", help="folder of an index to search; needed by a model that only embeds"),
        arg("--title", help="title of the page (default: the model's name)"),
        arg("--examples", metavar="JSONL", help="chats whose questions can be clicked (default: those of a checkout)"),
        arg("--max-new-tokens", type=int, default=48, metavar="N", help="(default: %(default)s)"),
    ),
    "push": Command(
        "check a model's folder, and push it to the Hub if nothing is wrong with it",
        "train",
        ("outputs/my me/my-model", "outputs/my me/my-model --check-only    # nothing leaves this machine"),
        arg("folder", metavar="FOLDER", help="output folder of training or `save_pretrained`"),
        arg("repo_id", metavar="REPO", help="such as me/my-model; the card's example must load it"),
        arg("--check-only", action="store_true", help="check, and push nothing"),
        arg("--private", action="store_true", help="make a new repository private"),
    ),
    "benchmark": Command(
        "measure speed side by side with transformers' own models of the same size, with random weights",
        "train",
        ("", "text --tokens 32", "--json scripts/results/cpu.json"),
        arg("parts", nargs="*", metavar="PART", help=f"of {', '.join(BENCHMARKS)} (default: all)"),
        arg("--tokens", type=int, default=32, help="tokens generated for each row (default: %(default)s)"),
        arg("--repeats", type=int, default=5, help="runs of each side (default: %(default)s)"),
        arg("--json", metavar="FILE", help="write the results with the machine, its limits and the versions"),
        DEVICE,
    ),
    "info": Command(
        "show versions, devices and packaged files; or the parts, sizes and limits of a model",
        "train",
        ("", "MODEL", "gpt2-siglip-whisper    # a packaged preset", "--path accelerate/ddp"),
        arg("model", nargs="?", metavar="MODEL", help="folder or Hub id of a joint model, or name of a preset"),
        arg("--path", metavar="KIND/NAME", help="print the path of a packaged file, such as recipes/vqa-lora"),
    ),
}
