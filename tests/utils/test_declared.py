"""declared.py: types read from sources equal those of the imported classes, which take seconds to import."""

from dataclasses import fields
from typing import Any, Literal

import pytest
from pydantic import PositiveInt
from transformers import GPT2Config

from modeling_mm import MMConfig
from modeling_mm.training import MMTrainingArguments
from modeling_mm.utils import build, mapping_of
from modeling_mm.utils.declared import declared_constant, declared_mapping, declared_types, read_source
from modeling_mm.utils.validation import type_hints

GPT2 = "transformers.models.gpt2.configuration_gpt2", "GPT2Config"


def test_the_fields_of_training_arguments_are_those_of_the_class():
    read = declared_mapping("modeling_mm.training.arguments", "MMTrainingArguments").__annotations__
    real = mapping_of(type_hints(MMTrainingArguments)).__annotations__
    assert read.keys() == real.keys() and len(real) > 100
    # The enumeration in this list is another class of the same name and values.
    assert {name for name in real if read[name] != real[name]} <= {"debug"}


def test_the_fields_of_configs_are_those_of_the_classes():
    assert set(declared_types(*GPT2)) == {field.name for field in fields(GPT2Config)}
    assert declared_constant(*GPT2, "attribute_map") == GPT2Config.attribute_map
    own = mapping_of(declared_types("modeling_mm.configuration_mm", "MMConfig", bases=False)).__annotations__
    assert own == mapping_of(MMConfig.__annotations__).__annotations__


SOURCE = """
import enum
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

class Color(str, enum.Enum):
    RED = "red"
    BLUE = "blue"

class Other:
    pass

@dataclass
class Inner:
    size: int

@dataclass
class Base:
    first: int = 1

@dataclass
class Outer(Base):
    color: "Color | None" = None
    inner: Inner | None = None
    many: list[Inner] = ()
    pair: tuple[int, ...] = ()
    maybe: Optional[float] = None
    word: Literal["a", "b"] = "a"
    other: Other | str | None = None
    alone: Other = None
    strange: compute() = None
    table: dict[str, Any] = None
    shared: ClassVar[int] = 3
    given: Given = None
    limits = {"a": 1}
"""


def test_what_a_source_tells_and_no_more(tmp_path, monkeypatch):
    (tmp_path / "declaring").mkdir()
    (tmp_path / "declaring" / "__init__.py").write_text("raise SystemExit('it is never imported')")
    (tmp_path / "declaring" / "named.py").write_text("if True:\n    from .parts import Outer as Named\n")
    (tmp_path / "declaring" / "parts.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    hints = declared_types("declaring.named", "Named", {"Given": PositiveInt})
    assert "shared" not in hints and "limits" not in hints
    assert declared_constant("declaring.named", "Named", "limits") == {"a": 1}
    plain = mapping_of(hints).__annotations__
    expected = {"first": int, "color": Literal["red", "blue"] | None, "pair": tuple[int, ...], "maybe": float | None}
    expected |= {"word": Literal["a", "b"], "other": str | None, "alone": Any, "strange": Any, "given": PositiveInt}
    assert {name: plain[name] for name in expected} == expected and plain["table"] == dict[str, Any]
    kind = declared_mapping("declaring.named", "Named", {"Given": PositiveInt})
    assert build(kind, {"many": [{"size": 1}], "inner": {"size": 2}, "pair": [1, 2]})["inner"] == {"size": 2}
    for values, message in (
        ({"inner": {}}, "inner: `size` is missing."),
        ({"many": [{"size": "1"}]}, r'many.0.size: expected a valid integer, got "1".'),
        ({"many": [{"size": 1, "sizes": 2}]}, "many.0.sizes: unknown key 'sizes'. Did you mean 'size'?"),
    ):
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            build(kind, values)
    assert declared_types("declaring.named", "Missing") == {} and read_source("nowhere.at.all") is None
