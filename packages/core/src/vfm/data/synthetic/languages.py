"""Names of shapes and colours in other languages, for true captions that are not English."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vfm.data.synthetic.scene import COLOURS, SHAPES, Colour, Shape

Language = Literal["en", "de", "fr", "es", "ja"]
LANGUAGES: tuple[Language, ...] = get_args(Language)


@dataclass(frozen=True)
class Lexicon:
    """The words of a language.

    Attributes:
        nouns: Word and gender ("m", "f", "n") for each of SHAPES.
        adjectives: Forms by gender for each of COLOURS.
        phrase: Order of `{colour}` and `{shape}`.
        templates: Captions around a phrase.
    """

    nouns: dict[Shape, tuple[str, str]]
    adjectives: dict[Colour, dict[str, str]]
    phrase: str
    templates: tuple[str, ...]

    def name(self, shape: Shape, colour: Colour) -> str:
        """Name a shape and a colour in this language, with the adjective in the noun's gender."""
        noun, gender = self.nouns[shape]
        return self.phrase.format(shape=noun, colour=self.adjectives[colour][gender])


def _nouns(words: str) -> dict[Shape, tuple[str, str]]:
    """Parse `Kreis:m Quadrat:n ...` in the order of SHAPES, where `_` stands for a space."""
    nouns = {}
    for shape, word in zip(SHAPES, words.split(), strict=True):
        noun, gender = word.replace("_", " ").split(":")
        nouns[shape] = (noun, gender)
    return nouns


def _adjectives(genders: str, words: str) -> dict[Colour, dict[str, str]]:
    """Parse `roter/rote/rotes ...` in the order of COLOURS, with a form per gender or a form for all genders."""
    adjectives = {}
    for colour, word in zip(COLOURS, words.split(), strict=True):
        forms = word.split("/")
        if len(forms) == 1:
            forms *= len(genders)
        adjectives[colour] = dict(zip(genders, forms, strict=True))
    return adjectives


LEXICONS: dict[Language, Lexicon] = {
    "de": Lexicon(
        _nouns("Kreis:m Quadrat:n Dreieck:n Raute:f Stern:m Herz:n Pfeil:m Kreuz:n Mond:m Tropfen:m Pilz:m Sanduhr:f"),
        _adjectives(
            "mfn",
            "roter/rote/rotes oranger/orange/oranges gelber/gelbe/gelbes grüner/grüne/grünes "
            "türkiser/türkise/türkises blauer/blaue/blaues lila rosa weißer/weiße/weißes schwarzer/schwarze/schwarzes",
        ),
        "{colour} {shape}",
        ("{}", "Bild: {}", "{} kaufen", "{} auf einem Foto"),
    ),
    "fr": Lexicon(
        _nouns(
            "cercle:m carré:m triangle:m losange:m étoile:f cœur:m flèche:f croix:f lune:f goutte:f champignon:m "
            "sablier:m"
        ),
        _adjectives(
            "mf", "rouge orange jaune vert/verte cyan bleu/bleue violet/violette rose blanc/blanche noir/noire"
        ),
        "{shape} {colour}",
        ("{}", "image : {}", "photo de {}", "acheter {} en ligne"),
    ),
    "es": Lexicon(
        _nouns(
            "círculo:m cuadrado:m triángulo:m rombo:m estrella:f corazón:m flecha:f cruz:f luna:f gota:f seta:f "
            "reloj_de_arena:m"
        ),
        _adjectives(
            "mf", "rojo/roja naranja amarillo/amarilla verde cian azul morado/morada rosa blanco/blanca negro/negra"
        ),
        "{shape} {colour}",
        ("{}", "imagen de {}", "foto de {}", "comprar {}"),
    ),
    "ja": Lexicon(
        _nouns("円:n 四角:n 三角:n ひし形:n 星:n ハート:n 矢印:n 十字:n 月:n しずく:n きのこ:n 砂時計:n"),
        _adjectives("n", "赤い オレンジ色の 黄色い 緑の 水色の 青い 紫の ピンクの 白い 黒い"),
        "{colour}{shape}",
        ("{}", "{}の写真", "{}のイラスト"),
    ),
}
"""All languages except English, whose captions also name attributes (`vfm.data.synthetic.captions`)."""
