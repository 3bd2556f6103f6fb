"""Parts are components that a configuration chooses by `type`, such as a loss, an optimizer or a filter."""

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias, get_args

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from vfm.base.config import Config, load_function, readable
from vfm.base.unknown_keys import did_you_mean

PartType: TypeAlias = "type[Part]"  # within Part, `type` is the name of a field


def _is_slot(cls: type) -> bool:
    return "Part" in globals() and Part in cls.__bases__  # pydantic calls it while Part itself is defined


class Part(Config):
    """The configuration of a component that is chosen by its `type`.

    A direct subclass is a *slot*, and its subclasses are the choices. Defining a choice registers it, so a plugin adds
    a choice by importing its class in the module of its entry point::

        class ClipLoss(Part):  # the slot
            "Loss of `clip.train`."

        class InfoNce(ClipLoss):  # a choice
            type: Literal["info_nce"] = "info_nce"
            work: ClassVar[str] = "vfm_clip.losses:InfoNceLoss"

        class ClipTrain(Training):
            loss: ClipLoss = Field(InfoNce(), description="the loss")

    The slot itself is the field's annotation: a mapping becomes the choice that its `type` names. `build` constructs
    the configured object.
    """

    type: str

    work: ClassVar[str] = ""  # address of the function that `build` calls with the part and its arguments
    choices: ClassVar[dict[str, PartType]] = {}  # the choices of the slot, by type

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if _is_slot(cls):
            cls.choices = {}
            return
        tag = get_args(cls.model_fields["type"].annotation)
        if not tag:
            return
        other = cls.choices.setdefault(tag[0], cls)
        if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            slot = next(base.__name__ for base in cls.__mro__ if _is_slot(base))
            raise TypeError(
                f"two choices of {slot} have type {tag[0]!r}: one in {other.__module__}, one in {cls.__module__}"
            )
        cls.choices[tag[0]] = cls

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Construct the configured object by calling `work` with the part and the arguments."""
        return load_function(self.work)(self, *args, **kwargs)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if not _is_slot(cls):
            return handler(source)
        # `any_schema` serialises a part by its own class, with the fields that its type adds.
        return core_schema.with_info_after_validator_function(cls._choose, core_schema.any_schema())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        if not _is_slot(cls):
            return handler(schema)
        return {"oneOf": [handler(choice.__pydantic_core_schema__) for choice in cls.choices.values()]}

    @classmethod
    def _choose(cls, value: Any, info: ValidationInfo) -> Any:
        """Build the choice that a mapping describes."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            is_type = isinstance(value, str) and value in cls.choices
            hint = f"; write {{type: {value}}}" if is_type else ""
            raise ValueError(f"expected a mapping with a 'type', got {value!r}{hint}")
        if "type" not in value:
            raise ValueError(f"'type' is required; choose from {', '.join(cls.choices)}")
        choice = cls.choices.get(str(value["type"]))
        if choice is None:
            raise ValueError(f"type {value['type']!r} is not known{did_you_mean(str(value['type']), cls.choices)}")
        try:
            return choice.model_validate(value, context=info.context)
        except ValidationError as error:
            raise readable(error, choice) from None


def choices_of(model: type[BaseModel]) -> list[type[BaseModel]]:
    """List the configurations that a field of type `model` can hold.

    They are the choices of a slot, or else `model` itself.
    """
    if issubclass(model, Part) and _is_slot(model):
        return list(model.choices.values())
    return [model]
