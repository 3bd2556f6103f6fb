"""Function words: articles, pronouns, auxiliaries, conjunctions, prepositions, particles, in some languages.

They are the closed classes of each language's grammar, written down for this package. An entry that is one of them, or
a bigram with one, says nothing about an image.
"""

from __future__ import annotations

_LISTS = {
    "en": """
        a an the this that these those some any no every each either neither both all half several many much more most
        few fewer less least such other another others same own one ones i me my mine myself you your yours yourself
        yourselves he him his himself she her hers herself it its itself we us our ours ourselves they them their theirs
        themselves who whom whose which what whatever someone somebody something anyone anybody anything everyone
        everybody everything nobody nothing none am is are was were be been being have has had having do does did doing
        done will would shall should can could may might must ought cannot and or but nor so yet if then than because
        although though while whilst whereas unless until till since when where why how as whether about above across
        after against along alongside amid amidst among amongst around at atop away back before behind below beneath
        beside besides between beyond by down during except for from in inside into like near next of off on onto out
        outside over past per through throughout to toward towards under underneath up upon via with within without not
        only also just very too there here now again ever never always often still already even quite rather almost
        else it's he's she's there's that's i'm they're isn't aren't wasn't weren't don't doesn't didn't can't won't
    """,
    "de": """
        der die das den dem des ein eine einen einem einer eines kein keine keinen keinem keiner keines dieser diese
        dieses diesen diesem jener jene jenes jeder jede jedes jeden jedem alle allen aller alles beide beiden einige
        einigen mehrere mehreren viele vielen wenige manche solche andere anderen anderer anderes anderem selbe selben
        ich mich mir du dich dir er ihn ihm sie ihr ihnen es wir uns euch man sich mein meine dein deine sein seine
        seinen seinem seiner seines ihre ihren ihrem ihrer ihres unser unsere euer wer wen wem was welcher welche
        welches deren dessen denen etwas nichts jemand niemand bin ist sind war waren wird werden wurde wurden worden
        hat haben hatte hatten habe kann können konnte muss müssen soll sollen will wollen darf mag und oder aber denn
        sondern doch wenn weil dass ob als wie während bevor nachdem damit obwohl bis seit in im ins an am ans auf aus
        bei beim mit nach von vom zu zum zur um über unter vor hinter neben zwischen durch für gegen ohne entlang
        gegenüber außerhalb innerhalb trotz wegen nicht nur auch noch schon sehr so da dort hier dabei daran darauf
        davor dahinter darin her hin ab
    """,
    "fr": """
        le la les l' un une des du de d' au aux ce cet cette ces mon ma mes ton ta tes son sa ses notre nos votre vos
        leur leurs tout toute tous toutes chaque plusieurs quelque quelques aucun aucune autre autres même mêmes je me
        moi tu te toi il elle on nous vous ils elles lui se soi eux en y qui que quoi dont où lequel laquelle lesquels
        lesquelles ceci cela ça celui celle ceux celles rien personne est sont était étaient être été étant a ont avait
        avaient avoir ayant fait peut peuvent et ou mais donc or ni car si quand lorsque comme puisque tandis pendant
        dans sur sous à par pour avec sans chez vers entre devant derrière contre près après avant depuis dès jusque
        jusqu' hors parmi selon ne pas plus moins très aussi trop peu bien encore déjà ici là puis alors
    """,
    "es": """
        el la los las lo un una unos unas al del este esta estos estas ese esa esos esas aquel aquella aquellos aquellas
        mi mis tu tus su sus nuestro nuestra nuestros nuestras todo toda todos todas cada otro otra otros otras mismo
        misma varios varias algún alguno alguna algunos algunas ningún ninguno ninguna mucho mucha muchos muchas poco
        yo me mí tú te él ella ello nosotros ellos ellas le les se sí nos os que quien quienes cual cuales cuyo donde
        cuando como algo nada alguien nadie es son era eran ser sido siendo está están estaba estaban estar ha han
        había haber hay puede pueden y e o u pero sino ni si porque aunque mientras de a en por para con sin sobre bajo
        entre hacia hasta desde contra ante tras durante según no muy más menos también ya aún aquí allí así tan
    """,
    "it": """
        il lo la i gli le l' un uno una un' del dello della dei degli delle al allo alla ai agli alle dal dalla dai
        dalle nel nello nella nei negli nelle sul sullo sulla sui sugli sulle col questo questa questi queste quello
        quella quelli quelle mio mia suo sua suoi sue loro ogni altro altra altri altre stesso stessa tutto tutta tutti
        tutte alcuni alcune molti molte io me mi tu te ti lui lei noi ci voi vi essi si ne che chi cui quale quali dove
        quando come qualcosa niente nessuno è sono era erano essere stato ha hanno aveva avere può e ed o ma se perché
        mentre di a da in con su per tra fra sotto sopra dentro fuori davanti dietro verso contro durante senza non più
        meno molto anche già qui lì così
    """,
    "pt": """
        o a os as um uma uns umas ao aos à às do da dos das no na nos nas pelo pela pelos pelas num numa este esta estes
        estas esse essa esses essas aquele aquela aqueles aquelas isto isso aquilo meu minha seu sua seus suas nosso
        nossa todo toda todos todas cada outro outra outros outras mesmo mesma vários várias algum alguma alguns algumas
        nenhum muito muitos muitas eu me mim tu te ele ela nós eles elas lhe se que quem qual quais cujo onde quando
        como algo nada alguém é são era eram ser sido sendo está estão estava estavam estar há tem têm tinha ter pode e
        ou mas nem se porque enquanto de em por para com sem sobre sob entre até desde contra perante durante não mais
        menos também já ainda aqui ali assim tão
    """,
    "nl": """
        de het een deze dit die dat geen elk elke ieder iedere alle beide enkele sommige verschillende veel weinig
        andere ander zelfde ik me mij mijn je jij jou jouw u uw hij hem zijn zij ze haar wij we ons onze jullie hun hen
        er wie wat welke iets niets iemand niemand ben is was waren wordt worden werd heeft hebben had hadden kan kunnen
        moet zal zullen wil mag en of maar want als dan toen omdat hoewel terwijl voordat nadat tot in op aan bij met
        naar van uit om over onder voor achter naast tussen door tegen zonder langs tijdens binnen buiten niet ook nog
        al zeer te daar hier waar hoe zo
    """,
    "cs": """
        a i o u k ke s se v ve z ze na do od po pod pode nad nade před přede při pro za bez mezi kolem okolo podél proti
        u přes skrz vedle ten ta to ti ty tato toto tyto tento této tomto toho tom tím jeho její jejich můj svůj svou
        svým své svého který která které kteří jeden jedna jedno některý každý všichni všechny jiný další já ty on ona
        ono my vy oni ho mu ji jí jim je ním nimi si co kdo něco nic je jsou byl byla bylo byli být má mají může a ale
        nebo ani když protože aby že zatímco jako jak kde ne také už ještě velmi tam tady zde
    """,
    "ar": """
        في على من إلى الى مع عن و أو ثم هو هي هما هم هن هذا هذه ذلك تلك الذي التي الذين ما لا لم لن إن أن كان كانت بين
        تحت فوق أمام خلف وراء بجانب بجوار حول عند عبر خلال بعد قبل حيث بينما أثناء نحو داخل خارج كل بعض غير أحد إحدى به
        بها له لها منه منها فيه فيها عليه عليها معه معها
    """,
}
FUNCTION_WORDS = {language: frozenset(words.split()) for language, words in _LISTS.items()}


def base_language(language: str) -> str:
    """Return the code of a language without region and script: `en` for `en_GB`."""
    return language.lower().replace("_", "-").split("-")[0]


def function_words(*languages: str) -> frozenset[str]:
    """Return the function words of languages in lower case, by their codes with or without region.

    There are none for a language without a list.
    """
    return frozenset().union(*(FUNCTION_WORDS.get(base_language(language), ()) for language in languages))
