"""The plots of stories. A plot is a list of steps, a step a template (see grammar.py).

Slots: {N} the hero and {F} the friend by name, {kind} {fkind} what they are, {hadj} {fadj} what they are like, {he} {him} {his} {himself} {hers} and {fhe} {fhim} {fhis},
{obj} {adj} the thing, {place} the short name of the place, {food}, {weather}, {good} {bad} feelings, {daytime}.
A name is new after "named" and nowhere else; a friend appears as "a shy fox named Pip". No step names a creature, a thing of words.OBJECTS or a person except through a slot: what a story is about stays clear, and check_stories.py can tell."""
from .grammar import listed

PLOTS = {
    "lost": [
        "[{N} had a@ {adj} {obj}. It was {his} favourite thing.|The best thing {N} had was a@ {adj} {obj}.|Every day {N} carried a@ {adj} {obj} with {him}.]",
        "[One {daytime}, the {obj} was gone.|But one {daytime} {N} looked for the {obj} and could not find it.|One {daytime}, {N} came home and saw that the {obj} was missing.]",
        "[{N} searched the whole house, but the {obj} was nowhere.|{N} looked everywhere, but found only dust.|{N} asked everyone, but nobody had seen the {obj}.]",
        "[A@ {fadj} {fkind} named {F} came by and asked, \"[Why are you so sad|What is wrong|What are you looking for]?\"|A@ {fadj} {fkind} named {F} heard {him} and came to help.]",
        "[\"I lost my {obj},\" said {N}.|{N} told {F} all about the {obj}.|\"My {obj} is gone,\" said {N} in a small voice.]",
        "[\"Let us look together,\" said {F}.|\"Do not worry, {N},\" said {F}. \"We will find it.\"|{F} said, \"Four eyes see more than two. Let us go and look.\"]",
        "[They walked back along the path, step by step.|Together {N} and {F} followed the path to the river.|{N} and {F} looked under every bush on the way.]",
        "[There, in the tall grass, lay the {obj}.|At last {F} pointed to something under a leaf. It was the {obj}!|{N} saw something in a hole between two roots. It was the {obj}!]",
        "[\"Thank you, {F}!\" said {N}.|{N} was {good} and hugged {F}.|{N} held the {obj} tight and laughed.]",
        "[From then on, {N} always put the {obj} in a safe place.|After that day, {N} and {F} were the best of friends.|{N} learned that a good friend is worth more than any {obj}.]"],
    "high": [
        "[{N} wanted a@ {obj} very much.|For a long time, {N} had dreamed of a@ {adj} {obj}.|More than anything, {N} wished for a@ {adj} {obj}.]",
        "[One {daytime}, {N} saw a@ {obj} [at the top of a tall tree|on a high shelf|on the roof of the barn].|One {daytime}, {N} found a@ {obj} [hanging from a high branch|high up on a wall].]",
        "[{N} jumped and jumped, but {he} could not reach the {obj}.|{N} stretched as far as {he} could, but it was too high.|{N} tried to climb, but {he} slipped and fell.]",
        "[A@ {fadj} {fkind} named {F} was watching.|Along came a@ {fadj} {fkind} named {F}.|A@ {fadj} {fkind} named {F} had seen it all.]",
        "[\"Stand on my back, {N},\" said {F}.|\"Two are taller than one,\" said {F}.|\"Let me help you, {N},\" said {F}.]",
        "[{N} climbed up, slowly and carefully.|{N} took a deep breath and tried once more.|{N} stood on {F} and did not look down.]",
        "[This time {N} could reach the {obj}.|{N} stretched out {his} hand, and the {obj} was {hers}.|At last {N} touched the {obj} and took it down.]",
        "[\"We did it!\" said {N} and {F}.|{N} laughed out loud, and {F} laughed too.|{N} was {good}, and so was {F}.]",
        "[{N} shared the {obj} with {F} from that day on.|{N} and {F} used the {obj} together every day.|{N} never forgot what {F} had done.]"],
    "storm": [
        "[{N} always carried a@ {adj} {obj} with {him}.|{N} never left the house without {his} {adj} {obj}.|{N} had a@ {adj} {obj} and took it everywhere.]",
        "[One {daytime}, {N} was on the way home when the sky turned dark.|One {daytime}, black clouds came over the {place}.|One {daytime} the wind began to howl around the {place}.]",
        "[Rain began to fall, and then came the thunder.|Thunder rolled and lightning flashed.|The rain fell so hard that {N} could not see the path.]",
        "[Then {N} heard a small voice. \"Help! Help!\"|Suddenly somebody cried for help.|Near the river, somebody was calling.]",
        "[It was a@ {fadj} {fkind} named {F}, who was stuck in the mud.|A@ {fadj} {fkind} named {F} was caught under a branch.|It was a@ {fadj} {fkind} named {F}, who had fallen into the water.]",
        "[\"Do not be afraid, {F},\" said {N}.|{N} forgot {his} own fear at once.|\"Hold on, {F}!\" shouted {N}.]",
        "[{N} used the {obj} to pull {F} out.|{N} held out the {obj}, {F} took hold of it, and {N} pulled.|The {obj} was just what {N} needed, and soon {F} was free.]",
        "[{N} and {F} found a dry cave and waited.|{N} and {F} sat close together until the storm was over.|Together {N} and {F} ran to {N}'s home and made a fire.]",
        "[When the sun came out, {F} thanked {N}.|In the morning the sky was blue again.|After an hour the rain stopped, and {F} smiled.]",
        "[\"You are the bravest {kind} I know,\" said {F}.|\"You and your {obj} saved me,\" said {F}.|{F} said, \"Thank you, {N}.\"]",
        "[{N} was not afraid of storms any more.|From that day on, {N} and {F} were friends.|{N} had found out how brave {he} was, and {he} kept the {obj} all {his} life.]"],
    "share": [
        "[{N} had a@ {adj} {obj}, and {he} did not like to share.|{N} had just got a@ {adj} {obj}. \"It is only mine,\" said {N}.|Nobody had a@ {obj} as fine as {N}'s.]",
        "[One {daytime}, a@ {fadj} {fkind} named {F} asked, \"May I try your {obj}?\"|A@ {fadj} {fkind} named {F} looked at the {obj}. \"May I try it?\" asked {F}.|One {daytime}, a@ {fadj} {fkind} named {F} came and asked for the {obj}.]",
        "[\"No,\" said {N}. \"The {obj} is mine.\"|{N} shook {his} head and turned away.|{N} hid the {obj} behind {his} back.]",
        "[{F} went away without a word.|{F} looked down and walked home.|So {F} went off to play with the others.]",
        "[{N} played alone all day, but it was not much fun.|Soon {N} was bored.|{N} sat alone with the {obj} and felt {bad}.]",
        "[In the morning {N} went to find {F}.|At last {N} took the {obj} and ran to {F}'s house.|So {N} picked up the {obj} and went to look for {F}.]",
        "[\"I am sorry, {F},\" said {N}. \"Let us use the {obj} together.\"|\"I was wrong,\" said {N}. \"Will you play with me, {F}?\"|\"Please take the {obj}, {F},\" said {N}.]",
        "[{F} was {good}. \"Thank you, {N},\" said {F}.|{F} smiled. \"Of course,\" said {F}.|{F} clapped {fhis} hands.]",
        "[{N} and {F} played until the sun went down.|All afternoon {N} and {F} took turns with the {obj}.|{N} and {F} laughed so much that everyone came to see.]",
        "[{N} found that the {obj} was twice as nice when it was shared.|Now {N} knows that sharing makes friends.|That was the best day {N} had ever had.]"],
    "learn": [
        "[{N} wanted to learn to [skill].|More than anything, {N} wanted to [skill].|{N} dreamed of the day when {he} could [skill].]",
        "[The first time {N} tried, everything went wrong.|{N} tried all morning, but it was no use.|At first it was very hard for {N}.]",
        "[\"I cannot do it,\" said {N}.|{N} felt {bad} and wanted to give up.|The others laughed, and {N} ran away.]",
        "[A@ {fadj} {fkind} named {F} sat down beside {him}.|A@ {fadj} {fkind} named {F} had watched {him} from the gate.|That {daytime}, a@ {fadj} {fkind} named {F} came to visit.]",
        "[\"When I was young, I could not do it either,\" said {F}.|\"Nobody can do it on the first day, {N},\" said {F}.|\"Little by little,\" said {F}.]",
        "[{F} gave {N} a@ {adj} {obj}. \"It will bring you luck,\" said {F}.|{F} gave {N} a@ {adj} {obj} and said, \"Try once more.\"]",
        "[{N} held the {obj} and tried again.|Day after day, {N} tried again, and the {obj} was always with {him}.|With the {obj} beside {him}, {N} practised in the sun and in the rain.]",
        "[Then one {daytime}, it worked!|And one {daytime}, {N} did it.|At last, on a bright {daytime}, {N} could do it.]",
        "[{F} clapped and cheered.|\"Look at me, {F}!\" said {N}.|{N} could hardly believe it.]",
        "[\"I knew you could do it, {N},\" said {F}.|\"It was not the {obj},\" said {F}. \"You only had to keep trying.\"|{N} thanked {F} and kept the {obj}.]",
        "[Now {N} teaches the little ones to [skill].|And when something is hard, {N} looks at the {obj} and tries again.|{N} was {good}, for {he} had not given up.]"],
    "gift": [
        "[{N} had a friend, a@ {fadj} {fkind} named {F}. It was {F}'s birthday.|Tomorrow was the birthday of a@ {fadj} {fkind} named {F}.|{N} wanted to give a@ {fadj} {fkind} named {F} a present.]",
        "[{N} went to the shop and saw a@ {adj} {obj}. It was just right.|In the window of a shop {N} saw a@ {adj} {obj}.|On the way {N} met a seller who had a@ {adj} {obj}.]",
        "[But the {obj} cost far too much.|The seller said, \"The {obj} is not cheap.\"|But {N} had no money at all.]",
        "[{N} was {bad}, but then {he} had an idea.|{N} thought hard.|\"I can work for the {obj},\" said {N}.]",
        "[So {N} swept the floor and washed the windows of the shop.|All day {N} carried sacks for the seller.|{N} picked {food} for the seller until it was dark.]",
        "[When the sun went down, the seller gave {N} the {obj}.|\"You have worked well,\" said the seller. \"The {obj} is yours.\"|At the end of the day, the {obj} belonged to {N}.]",
        "[The next morning, {N} gave the {obj} to {F}.|{N} wrapped the {obj} in a leaf and ran to {F}.|{N} put the {obj} in front of {F}'s door and knocked.]",
        "[{F}'s eyes grew wide.|{F} saw the {obj} and laughed with joy.|\"For me?\" asked {F}.]",
        "[\"It is the best gift of all,\" said {F}. \"Thank you, {N}.\"|\"A@ {obj}!\" said {F}. \"Thank you, {N}!\"]",
        "[{N} and {F} ate {food} and danced until night.|{N} was tired, but {he} was {good}.|And that evening {N} and {F} looked at the {obj} again and again.]"],
    "night": [
        "[Every night, {N} was afraid of the dark.|{N} did not like the night.|One night, {N} could not sleep.]",
        "[Strange sounds came from outside.|Tap, tap, tap, went something at the window.|The shadows looked like monsters.]",
        "[{N}'s heart beat fast.|\"Who is there?\" whispered {N}, but nobody answered.|{N} did not dare to move.]",
        "[Then {N} thought of {his} {adj} {obj}.|On the table lay a@ {adj} {obj}, and {N} took it.|But {N} took {his} {adj} {obj} and got up.]",
        "[With the {obj} in {his} hand, {N} opened the door.|{N} held the {obj} and looked out of the window.|Step by step, {N} went outside with the {obj}.]",
        "[There sat a@ {fadj} {fkind} named {F}, who was cold and lost.|It was only a@ {fadj} {fkind} named {F}.|On the step sat a@ {fadj} {fkind} named {F}.]",
        "[\"I cannot find my way home,\" said {F}.|\"I am afraid of the dark,\" said {F}.|\"I did not mean to scare you,\" said {F}.]",
        "[\"Come in, {F},\" said {N}.|{N} laughed, for now {he} was not afraid at all.|\"I was afraid too,\" said {N} to {F}.]",
        "[{N} and {F} sat together and looked at the stars.|{N} and {F} shared some {food} and talked until they fell asleep.|{N} showed {F} the moon and the {obj}.]",
        "[After that, {N} was never afraid of the dark again.|In the morning {N} and {F} walked home together.|And {N} gave the {obj} to {F} to remember that night.]"],
    "race": [
        "[Once a year there was a great race in the {place}.|The whole {place} was talking about the race.|Tomorrow was the day of the great race.]",
        "[The prize was a@ {adj} {obj}, and {N} wanted to win it.|{N} wanted to win the prize, a@ {adj} {obj}.|The winner would get a@ {adj} {obj}, and {N} wanted to try.]",
        "[A@ {fadj} {fkind} named {F} was the fastest of all.|\"I will win the {obj},\" said a@ {fadj} {fkind} named {F}.|Nobody believed that {N} could beat a@ {fadj} {fkind} named {F}.]",
        "[One, two, three, and off they went!|The race began, and they all ran.|\"Ready, steady, go!\"]",
        "[{F} was soon far ahead of {N}.|{N} ran as well as {he} could.|{N}'s legs grew heavy, but {he} kept going.]",
        "[Then {F} tripped over a root and fell.|But {F} slipped and hurt {fhis} foot.|Suddenly {F} stopped. There was a thorn in {fhis} foot.]",
        "[The others ran on, but {N} stopped.|Now {N} was in front. But {N} looked back.|{N} could have run past and won.]",
        "[\"Lean on me, {F},\" said {N}.|{N} went back and helped {F} up.|{N} pulled out the thorn and held {fhis} hand.]",
        "[Together {N} and {F} walked to the end.|{N} and {F} came in last, arm in arm.|Slowly, side by side, {N} and {F} crossed the line.]",
        "[Everybody cheered, and the {obj} was given to {N}.|\"The {obj} goes to {N},\" said the judge, \"for a kind heart.\"|And {F} said, \"{N}, the {obj} is yours.\"]",
        "[{N} and {F} were friends from then on.|The next year {N} and {F} ran together again.|{N} kept the {obj} and was {good}.]"],
    "mend": [
        "[{N} had a@ {adj} {obj} that once belonged to {his} grandmother.|The {adj} {obj} had been in {N}'s family for a hundred years.|{N} loved {his} {adj} {obj} very much.]",
        "[One {daytime}, the {obj} fell and broke in two.|One {daytime}, by accident, {N} broke the {obj}.|Then, one {daytime}, the {obj} broke.]",
        "[\"Oh no!\" said {N}. \"My {obj}!\"|\"What have I done?\" said {N}.|{N} felt {bad} and picked up the pieces.]",
        "[{N} tried glue, but it did not hold.|{N} tied the {obj} with string, but it fell apart again.|{N} tried to mend the {obj} alone, but it was too hard.]",
        "[A@ {fadj} {fkind} named {F} said, \"I can help you, {N}.\"|A@ {fadj} {fkind} named {F} came by. \"What is broken can be mended,\" said {F}.|\"Do not cry, {N},\" said a@ {fadj} {fkind} named {F}.]",
        "[{N} and {F} worked together all night.|{F} held the light while {N} worked.|Piece by piece, {N} and {F} put it together.]",
        "[In the morning the {obj} was whole again.|Now the {obj} was even more beautiful than before.|A thin line showed where the {obj} had been broken.]",
        "[\"Thank you, {F},\" said {N}.|{N} was {good} and thanked {F}.|\"Now your {obj} has a story,\" said {F}.]",
        "[{N} carried the {obj} home with great care.|And {N} loved the {obj} more than ever.|{N} and {F} put the {obj} back in its place and smiled.]"],
    "travel": [
        "[{N} had never left the {place}.|{N} wanted to see the world.|Every day {N} looked at the far hills and wondered what was behind them.]",
        "[One {daytime}, {N} took a@ {adj} {obj}, some {food} and a warm coat.|One {daytime}, {N} left home with a@ {adj} {obj} and some {food}.|One {daytime}, {N} set off and took only a@ {adj} {obj}.]",
        "[{N} walked until {his} feet hurt.|{N} followed the river to the sea.|{N} climbed a hill and saw the whole land.]",
        "[In a wood {N} met a@ {fadj} {fkind} named {F}.|There {N} met a@ {fadj} {fkind} named {F}.|On the second day a@ {fadj} {fkind} named {F} came the other way.]",
        "[\"Where are you going?\" asked {F}. \"To the end of the world,\" said {N}.|\"May I come with you, {N}?\" asked {F}.|\"Let us go together,\" said {F}.]",
        "[{N} and {F} travelled together for many days.|{N} and {F} shared the {food} and slept under the stars.|{N} and {F} sang songs, and the road was not so long.]",
        "[But one night {N} missed {his} home.|Then {N} and {F} lost the way in a thick fog.|One day the bridge was broken, and {N} and {F} could not go on.]",
        "[The {obj} helped them out.|\"Use your {obj}, {N}!\" said {F}. And it worked.|{N} looked at the {obj} and thought of home.]",
        "[\"It is time to go home, {F},\" said {N}.|\"I have seen enough,\" said {N}.|So {N} and {F} turned around and took the shortest way.]",
        "[When {N} came back, everyone was waiting.|{N} was {good} to be home at last.|And {F} stayed with {N}, for there was room for two.]",
        "[The {obj} hangs over the door now.|{N} and {F} told stories about the journey all winter.|{N} kept the {obj} to remember the journey.]"],
}

SKILLS = listed("swim, read, bake bread, ride a horse, sing, climb trees, dance, paint, skate on the ice, count the stars, tell stories, catch fish, build a fire, juggle")

# The thing is named at once: from there on every name and thing is one that was told before.
OPEN_ONCE = ["Once upon a time, there was {intro} who lived {inplace}. This is the story of {N} and a@ {obj}.",
             "Once upon a time, there lived {intro} {inplace}. This is the story of {N} and a@ {obj}.",
             "Once upon a time, there was {intro}. This is the story of {N} and a@ {obj}."]
OPEN_OTHER = ["Long ago, {inplace}, there lived {intro}. This is the story of {N} and a@ {obj}.", "This is the story of {intro} and a@ {obj}. {N} lived {inplace}.",
              "Far away, {inplace}, lived {intro}. This is the story of {N} and a@ {obj}."]
EXTRA = [
    "{N} lived with {his} [mother|father|grandmother|two sisters|three brothers|grandfather].", "{N} was {hadj}, and everyone liked {him}.",
    "Every morning {N} [swept the floor|went to the well|sang a song|watered the flowers|ate some {food}].", "It was [spring|summer|autumn|winter], and {weather}.",
    "{N} liked {food} and [long walks|old songs|warm fires|funny stories|rainy days].", "Everyone said that {N} was a very {hadj} {kind}.",
    "In the evening {N} always looked at the [stars|moon|sea|fire]."]
CLOSE = ["The end.", "And that is the end of the story of {N} and the {obj}.", "And so the day ended well.", "Good night, {N}."]
TITLE = "The {Kind} and the {Obj}"
DAYTIMES = listed("morning, evening, afternoon, day, Sunday, spring morning, summer day, autumn evening, winter day")
