"""Words of RULER's keys and lists: pairs of an adjective and a noun, and coded words; numbers stand for them.

Notable: the benchmark's own lists are another package's; these are ours, so its items have other words here. No
adjective ends another and no noun begins another, so that no pair is found within another.
"""

_ALL_ADJECTIVES = """
amber ample aware bare basic bent bitter blank blunt bold brave brief bright brisk broad broken bronze busy calm careful central
cheap clean clear clever close cloudy coarse cold common compact complete constant cool crisp crooked curious curved daily damp
dark deep dense different direct distant double dry dull eager early eastern easy empty equal exact extra faint fair famous
fancy fast fine firm flat foreign formal fresh frozen full gentle giant glad golden grand grave great green grey half handsome
happy hard harsh heavy hidden high hollow honest hot huge humble idle immense inner iron joint keen kind large late lazy level
light likely little lively local lonely long loose loud loyal lucky main mellow mild minor mixed modern modest moist narrow
native near neat new noble noisy northern odd official open orange outer pale patient plain pleasant polite private proper proud
public pure purple quick quiet rapid rare raw ready real recent regular remote rich rigid ripe rough round royal rural rusty
safe salty secret separate serious shallow sharp shiny short shy silent silver simple single slender slim slow small smart
smooth sober soft solid southern spare special square stable steady steep stiff still stone stout strange strict strong sturdy
subtle sudden sunny sure sweet swift tall tame tender thick thin tidy tight tiny tough true unusual upper urban useful vague
vast violet vivid warm wary western wet white whole wide wild wise wooden yellow young
"""

_ALL_NOUNS = """
account actor address air alarm anchor angle ankle answer ant apple apron arch area army arrow artist ash aunt author autumn axe
badge bag baker balloon band bank barn barrel base basin basket bath battle bay beach bead beam bean beard bed beetle bell belt
bench berry bird blade blanket block boat body bone book boot border bottle bottom bowl box boy brain branch brass bread brick
bridge broom brother brush bucket building bulb bull bush butter button cabin cable cake calendar camera camp canal candle
captain card carpet carriage cart castle cattle cave ceiling cellar chain chair chalk channel chapter cheese chest chicken chief
child chin church circle city clay clerk cliff clock cloth cloud coach coal coast coat coffee coin collar colour column comb
comfort copper copy cord corner cotton cough country course court cousin cow cream creek crop crowd crown cup curtain cushion
dance danger daughter day deer desert desk diamond dinner dish doctor dog doll donkey door drain drawer dream dress drink driver
drop drum duck dust eagle earth edge egg elbow elephant engine evening eye face factory family fan farmer feather fence ferry
field finger fire fish flag flame flavour flock floor flour flower fly fog folder food foot forest fork fox frame friend frog
fruit furnace garage garden garlic gate giraffe girl glass glove goat gold goose grain grape grass gravel ground group guest
guide guitar gun hair hall hammer hand harbour hat hawk head heart heat hedge heel helmet herd hill hinge holiday home honey
hood hook horn horse hospital hotel hour house hunter ice idea inch ink insect island jacket jar jelly jewel journey judge juice
jungle kettle key king kitchen kite kitten knee knife knot ladder lake lamb lamp land lane lantern lawyer lead leaf leather leg
lemon letter library lid lift line lion lip list lock log market mask meadow meal meat medal melon metal mile milk mill mine
mirror mist money monkey month moon morning moss mother motor mountain mouse mouth mud muscle museum nail name napkin neck
needle nephew nest net night north nose note novel number nurse nut oak oar ocean office oil onion orchard order oven owl owner
ox page pail paint pan paper parcel park parrot path pearl pencil pepper person piano picture pie pig pillow pilot pine pipe
pirate place plaza planet plant plate pocket poem poet point pond pony pool port post potato powder prince prison queen question
rabbit rail rain ranch rat ray reason record ribbon rice riddle ring river road robin rock roof room root rope rose rubber ruler
saddle sailor salad salt sand saw scale scarf school science scissors screw seat seed shade sheep shelf shell ship shirt shoe
shop shore shoulder shovel side silk sister skin skirt sky sleeve smoke snail snake snow soap sock sofa soldier song soup spade
spark spider spoon spring squirrel stool stage stair stamp star station statue steam stem step stick stomach storm story stove
straw stream street string student sugar suit summer sun table tailor teacher team temple tent theatre thread throat throne
thumb thunder ticket tiger tile timber toe tomato tongue tool tooth torch tower town toy track trader train tray tree truck
trumpet trunk tunnel turkey turtle twig uncle valley vase vegetable veil vessel village vine violin voice wagon waist wall
walnut watch water wave wax wheat wheel whip whistle window wine wing winter wire wolf wood wool worker worm wrist writer yard
year zebra
"""

_ADJECTIVES, _NOUNS = _ALL_ADJECTIVES.split(), _ALL_NOUNS.split()
N_WORDS = len(_ADJECTIVES) * len(_NOUNS)
N_CODED = 26**6


def pair(number: int) -> str:
    """The pair of a number below N_WORDS, as in quiet-harbour."""
    adjective, noun = divmod(number, len(_NOUNS))
    return f"{_ADJECTIVES[adjective]}-{_NOUNS[noun]}"


def letters(number: int, n: int, first: str = "a") -> str:
    """The word of `n` letters of a number below 26ⁿ."""
    out = ""
    for _ in range(n):
        number, letter = divmod(number, 26)
        out = chr(ord(first) + letter) + out
    return out
