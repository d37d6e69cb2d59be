"""examples.py: few examples of each answer, drawn by a seed."""

from modeling_mm.data import ChatDataset, few_of_each


def test_few_of_each_answer_are_drawn_by_the_seed():
    rows = [{"prompt": str(number), "completion": "even" if number % 2 == 0 else "odd"} for number in range(40)]
    dataset = ChatDataset([*rows, {"prompt": "40", "completion": "rare"}])
    found = [few_of_each(dataset, 3, seed) for seed in (0, 0, 1)]
    for few in found:
        assert [row.answer for row in few].count("even") == [row.answer for row in few].count("odd") == 3
        assert [row.answer for row in few].count("rare") == 1
    numbers = [[int(row.messages[0]["content"][0]["text"]) for row in few] for few in found]
    assert numbers[0] == numbers[1] != numbers[2] and all(each == sorted(each) for each in numbers)
