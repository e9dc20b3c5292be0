"""Who and what stories and questions are about, and which combinations are held out of training."""
from .grammar import listed

GIRLS = listed("Lily, Mia, Anna, Rose, Ella, Nora, Ruby, Clara, Ivy, Sara, Maya, Zoe, Lucy, Emma, Alice, Daisy, Hana, Tess, Molly, Grace, Poppy, "
               "Wren, June, Iris, Edith, Greta, Olive, Pearl, Flora, Nina")
BOYS = listed("Tom, Ben, Max, Sam, Leo, Finn, Jack, Oscar, Hugo, Theo, Milo, Otto, Peter, Noah, Luke, Henry, Felix, Toby, Jonas, Karl, Eli, Owen, "
              "Arlo, Ravi, Emil, Walter, Simon, Adam, Bruno, Victor")
PETS = listed("Pip, Rusty, Fern, Bramble, Hazel, Dusty, Pepper, Biscuit, Button, Socks, Maple, Pebble, Clover, Nutmeg, Tansy, Moss, Acorn, Ginger, Smoky, Patch")
PETS_SHE = set(listed("Fern, Hazel, Pepper, Maple, Clover, Tansy, Ginger, Nutmeg"))
NAMES = GIRLS + BOYS + PETS
SHE = set(GIRLS) | PETS_SHE  # a name decides between she and he

ANIMALS = listed("fox, rabbit, bear, mouse, owl, cat, dog, duck, frog, hedgehog, squirrel, badger, otter, turtle, goat, lamb, pony, donkey, crow, sparrow, "
                 "mole, beaver, deer, wolf, hen, goose, swan, snail, bee, kitten, puppy, elephant, lion, monkey, penguin, whale, seal, robin, hare, lizard")
FANTASY = listed("robot, dragon, giant, wizard, knight, princess, prince, fairy, ghost, troll")
PEOPLE = listed("baker, farmer, fisher, painter, sailor, tailor, miller, gardener, shepherd, clockmaker, teacher, potter, carpenter, musician, postman")
KINDS = ["girl", "boy"] + ANIMALS + FANTASY + PEOPLE
KINDS_SHE, KINDS_HE = ("girl", "princess", "fairy", "hen"), ("boy", "prince", "knight", "wizard", "postman", "giant", "troll")
OBJECTS = listed("lantern, kite, drum, map, key, boat, bell, book, hat, blanket, basket, ball, ring, coin, flute, umbrella, clock, mirror, candle, scarf, "
                 "ladder, bucket, spoon, feather, shell, stone, button, doll, wagon, cup, teapot, letter, pencil, paintbrush, box, jar, rope, broom, "
                 "whistle, violin, crown, telescope, compass, pillow, quilt, seed, pumpkin, apple, cake, acorn")
ADJ_OBJ = listed("red, blue, green, yellow, golden, silver, old, new, tiny, shiny, wooden, round, little, beautiful, strange, broken, dusty, painted, plain, "
                 "magic, bright, heavy, light, special, lost")
ADJ_HERO = listed("little, small, young, brave, shy, kind, clever, curious, cheerful, quiet, lonely, gentle, sleepy, busy, proud, silly, hungry, patient, "
                  "careful, friendly")
ADJ_OLD = listed("old, kind, quiet, cheerful, clever, patient, lonely, gentle, tired, wise, poor, friendly")


def held_pair(i, j):
    """Stories: index i of a name (or 7 + index of a kind) never meets index j of an object."""
    return (31 * i + 17 * j) % 19 == 6


def held_name(name, obj):
    return held_pair(NAMES.index(name), OBJECTS.index(obj))


def held_kind(kind, obj):
    return held_pair(KINDS.index(kind) + 7, OBJECTS.index(obj))


def held_numbers(a, b):
    """Sums, differences and comparisons: the ordered pair (a, b) is never asked for."""
    return (7 * a + 13 * b + 5) % 11 == 4


def held_words(s):
    """Sentences whose words are to be counted."""
    return sum(map(ord, s)) % 9 == 2


def held_call(tool, value):
    """Calls: the tool of this name is never called with this value."""
    return sum(map(ord, f"{tool}/{value}")) % 8 == 3
