"""A tiny model learns a few scenes by heart: from annotated images to boxes with scores."""

import torch
from PIL import Image, ImageDraw

from modeling_mm import MMForConditionalGeneration
from modeling_mm.boxes import ImageObject, read_objects
from modeling_mm.data import ChatDataset, located_rows
from modeling_mm.evaluation import iou, referring_accuracy
from modeling_mm.training import ChatCollator
from tests.fakes.processor_parts import make
from tests.fakes.tiny import gpt2, train, vit

SIZE = (64, 48)
PLACES = {
    "cat": [(4, 4, 24, 20), (38, 24, 60, 44), (4, 26, 20, 44)],
    "dog": [(30, 4, 60, 20), (4, 4, 30, 20), (36, 4, 60, 40)],
}
COLORS = {"cat": "red", "dog": "blue"}


def scene(folder, number: int):
    image = Image.new("RGB", SIZE, "white")
    objects = []
    for label, places in PLACES.items():
        left, top, right, bottom = places[number]
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=COLORS[label])
        objects.append(ImageObject(label, tuple(map(float, places[number]))))
    image.save(folder / f"{number}.png")
    return list(located_rows(folder / f"{number}.png", number, objects, SIZE))


def test_a_tiny_model_overfits_a_few_scenes(tmp_path):
    processor = make(audio=False)
    processor.image_processor.size = {"height": 16, "width": 16}
    first = processor.add_location_tokens()
    torch.manual_seed(0)
    model = MMForConditionalGeneration.from_text_vision_audio_pretrained(
        gpt2(vocab_size=300), vision=vit(), tokenizer=processor, cross_attention_interval=1
    )
    assert model.config.location_token_id == first
    rows = [row for number in range(3) for row in scene(tmp_path, number)]
    assert [row.task for row in rows] == ["detect", "find", "find"] * 3
    losses = train(model, [ChatCollator(processor)(list(ChatDataset(rows)))], steps=120, lr=4e-3)
    assert losses[-1] < 0.05 < losses[0], losses[::20]
    prompts = processor.apply_chat_template(
        [row.prompt for row in rows], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    outputs = model.generate(
        **prompts, max_new_tokens=24, do_sample=False, output_scores=True, return_dict_in_generate=True
    )
    height, width = SIZE[1], SIZE[0]
    answers = processor.parse_answers(outputs, [(height, width)] * len(rows))
    assert [each.problems for each in answers] == [[]] * len(rows)
    for row, answer in zip(rows, answers, strict=True):
        truth = read_objects(row.messages[1]["content"][0]["objects"], SIZE)
        found = {each.label: each for each in answer.objects}
        assert {each.label for each in truth} == set(found)
        assert all(iou(found[each.label], each) > 0.95 and found[each.label].score > 0.5 for each in truth)
    asked = [row for row in rows if row.task == "find"]
    truths = [read_objects(row.messages[1]["content"][0]["objects"], SIZE)[0] for row in asked]
    given = [answer.objects for row, answer in zip(rows, answers, strict=True) if row.task == "find"]
    assert referring_accuracy(given, truths) == 1.0
